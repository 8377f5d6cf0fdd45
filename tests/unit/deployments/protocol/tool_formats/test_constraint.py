"""The constraint of a forced call: whatever it allows, the format's parser reads as the call."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

from deployments.protocol.tool_formats import TOOL_FORMATS
from deployments.protocol.tool_formats.constraint import call_constraint
from tests.helpers.split_texts import parsed

CITY = {"type": "object", "properties": {"city": {"$ref": "#/$defs/name"}}, "required": ["city"],
        "$defs": {"name": {"type": "string"}}}  # fmt: skip
GOOD: dict[str, Any] = {"city": "Paris"}


def is_valid(schema: dict[str, Any], value: Any) -> bool:
    return bool(jsonschema.Draft202012Validator(schema).is_valid(value))


@pytest.mark.parametrize("name", list(TOOL_FORMATS))
@pytest.mark.parametrize("parallel", [False, True])
def test_what_a_constraint_allows_is_read_as_calls(name: str, parallel: bool) -> None:
    found = call_constraint(TOOL_FORMATS[name], {"weather": CITY, "f": None}, parallel)
    key = "parameters" if found.tool_format.name == "llama3-json" else "arguments"
    calls = [{"name": "weather", key: GOOD}, {"name": "f", key: {}}][: 2 if parallel else 1]
    if found.schema.get("type") == "array":
        assert found.separator is None
        assert is_valid(found.schema, calls)
        assert not is_valid(found.schema, [])
        assert is_valid(found.schema, calls * 2) == parallel
        text = f"{found.begin}{json.dumps(calls)}{found.end}"
    else:
        assert (found.separator is None) == (not parallel)
        assert all(is_valid(found.schema, one) for one in calls)
        text = (found.separator or "").join(f"{found.begin}{json.dumps(one)}{found.end}" for one in calls)
    rest, read = parsed(found.tool_format, [text])
    assert rest == ""
    assert [(called, json.loads(arguments)) for called, arguments in read] == [(one["name"], one[key]) for one in calls]


@pytest.mark.parametrize(
    "call",
    [
        {"name": "weather", "arguments": {"city": 1}},
        {"name": "weather", "arguments": {}},
        {"name": "weather"},
        {"name": "f", "arguments": GOOD},
        {"name": "weather", "arguments": GOOD, "more": 1},
    ],
)
def test_a_named_choice_allows_that_function_with_its_own_schema(call: dict[str, Any]) -> None:
    schema = call_constraint(TOOL_FORMATS["hermes"], {"weather": CITY}, parallel_calls=False).schema
    assert is_valid(schema, {"name": "weather", "arguments": GOOD})
    assert not is_valid(schema, call)
