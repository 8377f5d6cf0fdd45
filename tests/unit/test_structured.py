"""Forms of an answer: exactly one is given, readable and bounded."""

from __future__ import annotations

import json
import pickle
from typing import Any

import pytest

from entmtp.errors import EntMTPError
from entmtp.settings import SamplingParams
from entmtp.structured import MAX_CHARACTERS, MAX_CHOICES, Structured, framed_json

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


@pytest.mark.parametrize(
    ("given", "kind", "source"),
    [
        ({"json": SCHEMA}, "json", json.dumps(SCHEMA)),
        ({"json": json.dumps(SCHEMA)}, "json", json.dumps(SCHEMA)),
        ({"json": True}, "json", "{}"),
        ({"json_object": True}, "json", '{"type": "object"}'),
        ({"regex": "a+"}, "regex", "a+"),
        ({"choice": ("yes", "é")}, "choice", '["yes", "é"]'),
        ({"grammar": "start: A"}, "grammar", "start: A"),
    ],
)
def test_one_form_is_stored_as_text(given: dict[str, Any], kind: str, source: str) -> None:
    structured = Structured(**given)
    assert (structured.kind, structured.source) == (kind, source)
    assert pickle.loads(pickle.dumps(structured)) == structured
    assert SamplingParams(structured=structured).structured is structured


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "nothing is given; give one of json, json_object, regex, choice and grammar"),
        ({"json_object": False}, "nothing is given"),
        ({"json": SCHEMA, "regex": "a"}, "json and regex is given"),
        ({"json": "{"}, "'{' is not JSON; give a JSON schema"),
        ({"json": 7}, "7 is not a JSON schema; give an object"),
        ({"json": False}, "False is not a JSON schema"),
        ({"json": {"const": float("nan")}}, "is not JSON"),
        ({"json": {"const": object()}}, "is not JSON"),
        ({"regex": ""}, "the regex is empty"),
        ({"regex": 7}, "7 is not a regex; give a text"),
        ({"choice": []}, "[] is not a choice"),
        ({"choice": "yes"}, "'yes' is not a choice"),
        ({"choice": ["yes", ""]}, "'' is not a choice"),
        ({"choice": ["yes", 7]}, "7 is not a choice"),
        ({"choice": ["a"] * (MAX_CHOICES + 1)}, f"a list of {MAX_CHOICES + 1} is not a choice"),
        ({"regex": "a" * (MAX_CHARACTERS["regex"] + 1)}, "8193 characters are more than 8192, the most of a regex"),
        ({"json": {"const": "a" * MAX_CHARACTERS["json"]}}, "are more than 65536, the most of a json"),
        ({"json": "a" * 1_000_000}, "are more than 65536, the most of a json"),
    ],
)
def test_anything_else_is_refused_by_the_name_of_its_field(given: dict[str, Any], message: str) -> None:
    with pytest.raises(EntMTPError) as refusal:
        Structured(**given, field_name="guided")
    assert str(refusal.value).startswith("guided: ")
    assert message in str(refusal.value)


def test_too_deep_a_schema_is_refused() -> None:
    schema: dict[str, Any] = {}
    for _ in range(100_000):
        schema = {"items": schema}
    with pytest.raises(EntMTPError, match="is not JSON"):
        Structured(json=schema)
    while schema:  # a dictionary this deep would be freed by a recursion that overflows the stack
        schema = schema.pop("items")


def test_typical_acceptance_is_refused() -> None:
    with pytest.raises(EntMTPError, match="acceptance: 'typical' accepts tokens that a structured answer may not have"):
        SamplingParams.parse(structured=Structured(regex="a"), acceptance="typical")


def test_framed_json_is_a_grammar() -> None:
    framed = framed_json("<tool_call>", SCHEMA, "</tool_call>")
    assert framed.kind == "grammar"
    assert framed.source.startswith('start: "<tool_call>" value "</tool_call>"\nvalue: %json {')
