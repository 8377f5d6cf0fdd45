"""/v1/responses by OpenAI's own client, with a real engine whose model writes given texts."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

from tests.helpers.scripted_service import ARGUMENTS, TOOL

CALL = {"type": "function_call", "call_id": "1", "name": "f"}
FUNCTION: Any = {"type": "function", **TOOL["function"]}


def create(client: openai.OpenAI, prompt: Any, **more: Any) -> Any:
    return client.responses.create(**({"model": "m", "input": prompt, "temperature": 0, "store": False} | more))


def items(response: Any) -> list[tuple[str, Any]]:
    """Type and text of each item; of a call its name and arguments."""
    found: list[tuple[str, Any]] = []
    for one in response.output:
        is_call = one.type == "function_call"
        found.append((one.type, (one.name, one.arguments) if is_call else one.content[0].text))
    return found


CASES = [
    ("say hello", [("message", "Hello there.")]),
    ("call once", [("message", "I look."), ("function_call", ("weather", ARGUMENTS))]),
    ("call twice", [("function_call", ("weather", ARGUMENTS))] * 2),
    ("think", [("reasoning", "Hmm."), ("message", "Yes.")]),
    ("think and call", [("reasoning", "Hm."), ("function_call", ("weather", ARGUMENTS))]),
    ("say nothing", [("message", "")]),
]


@pytest.mark.parametrize(("prompt", "expected"), CASES)
def test_a_response_has_the_items_that_the_model_writes(
    scripted_client: openai.OpenAI, prompt: str, expected: list[tuple[str, Any]]
) -> None:
    response = create(scripted_client, prompt, tools=[FUNCTION])
    assert (response.status, items(response), response.store) == ("completed", expected, False)
    assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens
    assert (response.usage.output_tokens_details.reasoning_tokens > 0) == (expected[0][0] == "reasoning")
    with scripted_client.responses.stream(model="m", input=prompt, tools=[FUNCTION], temperature=0) as stream:
        events = list(stream)
        streamed = stream.get_final_response()
    assert items(streamed) == expected
    assert [event.sequence_number for event in events] == list(range(len(events)))


def test_events_come_in_openais_order(scripted_client: openai.OpenAI) -> None:
    events = list(create(scripted_client, "call once", tools=[FUNCTION], stream=True))
    names = [event.type.removeprefix("response.") for event in events]
    assert [name for at, name in enumerate(names) if name != (names[at - 1] if at else "")] == [
        *("created", "in_progress", "output_item.added", "content_part.added", "output_text.delta"),
        *("output_text.done", "content_part.done", "output_item.done", "output_item.added"),
        *("function_call_arguments.delta", "function_call_arguments.done", "output_item.done", "completed"),
    ]
    text = [event for event in events if event.type == "response.output_text.delta"]
    assert "".join(event.delta for event in text) == "I look."
    assert {(event.output_index, event.content_index) for event in text} == {(0, 0)}
    last = events[-1].response
    assert [one.id for one in last.output] == [
        event.item.id for event in events if event.type == "response.output_item.done"
    ]


def test_a_conversation_goes_on_with_its_items(scripted_client: openai.OpenAI) -> None:
    conversation: list[Any] = [{"role": "user", "content": [{"type": "input_text", "text": "think and call"}]}]
    response = create(scripted_client, conversation, instructions="Be short.", tools=[FUNCTION])
    conversation += [one.model_dump() for one in response.output]
    call = response.output[-1].call_id
    conversation.append({"type": "function_call_output", "call_id": call, "output": "rain"})
    assert create(scripted_client, conversation, tools=[FUNCTION]).output_text == "It rains."


def test_an_answer_that_is_cut_off_says_so(scripted_client: openai.OpenAI) -> None:
    response = create(scripted_client, "say hello", max_output_tokens=2)
    assert (response.status, response.output_text) == ("incomplete", "Hello there")
    assert response.incomplete_details.reason == "max_output_tokens"
    assert (
        list(create(scripted_client, "say hello", max_output_tokens=2, stream=True))[-1].type == "response.incomplete"
    )


@pytest.mark.parametrize(
    ("given", "param", "words"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id", "send the earlier items in 'input'"),
        ({"input": [{"type": "web_search_call", "id": "1"}]}, "input.0", "items here are messages"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
         "input.0.content.0.type", "input_text"),
        ({"input": []}, "input", "at least 1"),
        ({"input": ""}, "input", "no tokens"),
        ({"input": "say hello" * 2000}, "input", "context"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type", "functions alone"),
        ({"tools": [FUNCTION], "tool_choice": {"type": "function", "name": "g"}}, "tool_choice", "no tool"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format.type", "'text'"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema", "missing"),
        ({"text": {"format": {"type": "json_schema", "schema": {"type": 1}}}}, "text.format.schema", "schema"),
        ({"max_output_tokens": 0}, "max_output_tokens", "greater"),
        ({"temperature": -1}, "temperature", "greater"),
        ({"metadata": {"a": json.loads("[" * 200 + "]" * 200)}}, "metadata", "64 deep"),
        ({"input": [CALL | {"arguments": '{"a":' * 900 + "1" + "}" * 900}]}, "input.0.arguments", "64 deep"),
        ({"input": [CALL | {"arguments": "[" * 99_999}]}, "input.0.arguments", "JSON object"),
        ({"background": True}, "background", "leave it out"),
        ({"unknown": True}, "unknown", "leave it out"),
    ],
)  # fmt: skip
def test_mistakes_are_named(scripted_client: openai.OpenAI, given: dict[str, Any], param: str, words: str) -> None:
    body = {"model": "m", "input": "say hello"} | given
    with pytest.raises(openai.BadRequestError) as refusal:
        scripted_client.post("/responses", body=body, cast_to=object)
    assert refusal.value.param == param
    assert words in refusal.value.message
