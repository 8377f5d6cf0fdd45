"""Fields that ask for a form of the answer: OpenAI's, and vLLM's new and old names."""

from __future__ import annotations

import json
from typing import Any

import pytest

from deployments.protocol.errors import ApiError
from deployments.protocol.schema import ChatRequest, CompletionRequest
from entmtp.structured import Structured

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}
NAMED: dict[str, Any] = {"name": "n", "strict": True}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


def form_of(given: dict[str, Any]) -> Structured | None:
    chat = ChatRequest.model_validate(CHAT | given).sampling_params(100, None).structured
    plain = CompletionRequest.model_validate({"model": "m", "prompt": "Hello"} | given).sampling_params(100, None)
    assert plain.structured == chat
    return chat


@pytest.mark.parametrize(
    ("given", "expected", "field"),
    [
        ({"response_format": {"type": "json_object"}}, {"json_object": True}, "response_format"),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "n", "strict": True, "schema": SCHEMA},
                }
            },
            {"json": SCHEMA},
            "response_format.json_schema.schema",
        ),
        ({"structured_outputs": {"json": SCHEMA}}, {"json": SCHEMA}, "structured_outputs.json"),
        ({"structured_outputs": {"json": json.dumps(SCHEMA)}}, {"json": SCHEMA}, "structured_outputs.json"),
        ({"structured_outputs": {"json_object": True}}, {"json_object": True}, "structured_outputs.json_object"),
        ({"structured_outputs": {"regex": "a+"}}, {"regex": "a+"}, "structured_outputs.regex"),
        ({"structured_outputs": {"choice": ["a", "b"]}}, {"choice": ["a", "b"]}, "structured_outputs.choice"),
        ({"structured_outputs": {"grammar": "start: A"}}, {"grammar": "start: A"}, "structured_outputs.grammar"),
        ({"guided_json": SCHEMA}, {"json": SCHEMA}, "guided_json"),
        ({"guided_regex": "a+"}, {"regex": "a+"}, "guided_regex"),
        ({"guided_choice": ["a"]}, {"choice": ["a"]}, "guided_choice"),
        ({"guided_grammar": "start: A"}, {"grammar": "start: A"}, "guided_grammar"),
    ],
)
def test_every_name_asks_for_its_form(given: dict[str, Any], expected: dict[str, Any], field: str) -> None:
    found = form_of(given)
    assert found == Structured(**expected)
    assert found.field_name == field


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"response_format": None, "structured_outputs": None, "guided_json": None},
        {"response_format": {"type": "text"}},
        {"structured_outputs": {}},
        {"structured_outputs": {"json_object": False, "regex": None, "disable_any_whitespace": True}},
    ],
)
def test_values_that_ask_for_nothing_leave_the_text_free(given: dict[str, Any]) -> None:
    assert form_of(given) is None


@pytest.mark.parametrize(
    ("given", "param", "message"),
    [
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema", "this field is missing"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": [1]}}},
            "response_format.json_schema.schema",
            "[1] is not a JSON schema; give an object",
        ),
        ({"guided_regex": ""}, "guided_regex", "the regex is empty"),
        ({"guided_choice": ["a", 7]}, "guided_choice", "7 is not a choice"),
        ({"guided_json": "{"}, "guided_json", "'{' is not JSON"),
        ({"structured_outputs": {"regex": "a" * 100_000}}, "structured_outputs.regex", "100000 characters are more"),
        (
            {"structured_outputs": {"regex": "a", "choice": ["a"]}},
            "structured_outputs.choice",
            "structured_outputs.regex asks for a form of the answer too; give one of them",
        ),
        (
            {"response_format": {"type": "json_object"}, "guided_json": SCHEMA},
            "guided_json",
            "response_format asks for a form of the answer too",
        ),
    ],
)
def test_conflicts_and_malformed_forms_are_refused_by_name(given: dict[str, Any], param: str, message: str) -> None:
    with pytest.raises(ApiError) as refusal:
        form_of(given)
    assert (refusal.value.status, refusal.value.param, refusal.value.code) == (400, param, "invalid_value")
    assert refusal.value.message.startswith(f"{param}: ")
    assert message in refusal.value.message
