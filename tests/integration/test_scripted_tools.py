"""Tool calls and reasoning through a real engine whose model writes given texts, by OpenAI's own client."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from tests.helpers.http_api import Lines
from tests.helpers.scripted_service import ARGUMENTS, CALL, SCRIPTS, TOOL

TEXT = "".join(CALL)


@pytest.fixture(scope="module")
def client(scripted_client: openai.OpenAI) -> openai.OpenAI:
    return scripted_client


def chat(client: openai.OpenAI, prompt: str, **more: Any) -> Any:
    messages: Any = [{"role": "user", "content": prompt}]
    fields: Any = {"model": "m", "messages": messages, "temperature": 0} | more
    return client.chat.completions.create(**fields)


def calls(message: Any) -> list[tuple[str, str]]:
    return [(one.function.name, one.function.arguments) for one in message.tool_calls or ()]


@pytest.mark.parametrize(
    ("prompt", "content", "expected", "reason"),
    [
        ("say hello", "Hello there.", [], "stop"),
        ("call once", "I look.", [("weather", ARGUMENTS)], "tool_calls"),
        ("call twice", None, [("weather", ARGUMENTS)] * 2, "tool_calls"),
        ("call another", "".join(SCRIPTS["call another"]), [], "stop"),
        ("break off", "".join(SCRIPTS["break off"]), [], "stop"),
    ],
)
def test_a_chat_has_the_calls_that_the_model_writes(
    client: openai.OpenAI, prompt: str, content: str | None, expected: list[tuple[str, str]], reason: str
) -> None:
    (choice,) = chat(client, prompt, tools=[TOOL]).choices
    assert (choice.message.content, calls(choice.message), choice.finish_reason) == (content, expected, reason)
    assert len({one.id for one in choice.message.tool_calls or ()}) == len(expected)
    with client.chat.completions.stream(
        model="m", messages=[{"role": "user", "content": prompt}], tools=[TOOL], temperature=0
    ) as stream:
        final = stream.get_final_completion().choices[0]
    assert (final.message.content, calls(final.message), final.finish_reason) == (content, expected, reason)


def test_deltas_of_calls_are_openais(client: openai.OpenAI) -> None:
    chunks = [chunk.choices[0] for chunk in chat(client, "call twice", tools=[TOOL], stream=True)]
    deltas = [one for chunk in chunks for one in chunk.delta.tool_calls or ()]
    assert [(one.index, one.function.name, one.function.arguments) for one in deltas] == [
        (0, "weather", ""),
        (0, None, ARGUMENTS),
        (1, "weather", ""),
        (1, None, ARGUMENTS),
    ]
    assert [bool(one.id) for one in deltas] == [one.type == "function" for one in deltas] == [True, False, True, False]
    assert [chunk.finish_reason for chunk in chunks if chunk.finish_reason] == ["tool_calls"]
    assert chunks[-1].finish_reason == "tool_calls"


def test_one_call_alone_where_calls_are_not_parallel(client: openai.OpenAI) -> None:
    (choice,) = chat(client, "call twice", tools=[TOOL], parallel_tool_calls=False).choices
    assert calls(choice.message) == [("weather", ARGUMENTS)]


@pytest.mark.parametrize("more", [{}, {"tools": [TOOL], "tool_choice": "none"}])
def test_calls_are_text_without_tools(client: openai.OpenAI, more: dict[str, Any]) -> None:
    (choice,) = chat(client, "call once", **more).choices
    assert (choice.message.content, choice.message.tool_calls) == (f"I look.\n{TEXT}", None)


def test_a_call_that_is_cut_off_is_text(client: openai.OpenAI) -> None:
    (choice,) = chat(client, "call once", tools=[TOOL], max_tokens=7).choices
    assert (choice.message.content, choice.finish_reason) == (f"I look.\n{''.join(CALL[:-1])}", "length")


def test_a_result_goes_back_and_the_model_goes_on(client: openai.OpenAI) -> None:
    messages: list[Any] = [{"role": "user", "content": "call once"}]
    answer = chat(client, "call once", tools=[TOOL]).choices[0].message
    messages.append(answer.model_dump())
    messages.append({"role": "tool", "tool_call_id": answer.tool_calls[0].id, "content": "rain"})
    (choice,) = chat(client, "", messages=messages, tools=[TOOL]).choices
    assert choice.message.content == "It rains."


def test_a_forced_call_of_a_chat_that_asks_for_a_form_is_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="response_format asks for a form") as refusal:
        chat(client, "x", tools=[TOOL], tool_choice="required", response_format={"type": "json_object"})
    assert refusal.value.param == "tool_choice"


def test_reasoning_is_apart_from_the_content(client: openai.OpenAI) -> None:
    for prompt, content, called in (("think", "Yes.", []), ("think and call", None, [("weather", ARGUMENTS)])):
        message = chat(client, prompt, tools=[TOOL]).choices[0].message
        assert (message.content, calls(message)) == (content, called)
        assert message.reasoning_content in {"Hmm.", "Hm."}
        deltas = [one.choices[0].delta for one in chat(client, prompt, tools=[TOOL], stream=True)]
        assert "".join(getattr(one, "reasoning_content", "") for one in deltas) == message.reasoning_content
        assert "".join(one.content or "" for one in deltas) == (content or "")
    hidden = chat(client, "think", extra_body={"include_reasoning": False}).choices[0].message
    assert (hidden.content, hasattr(hidden, "reasoning_content")) == ("Yes.", False)


def test_usage_and_log_count_calls_as_any_answer(client: openai.OpenAI, scripted_lines: Lines) -> None:
    usage = chat(client, "call once", tools=[TOOL]).usage
    assert usage.completion_tokens == len(SCRIPTS["call once"]) + 1
    line = scripted_lines[-1]
    assert (line["key"], line["new_tokens"], line["status"]) == ("alice", usage.completion_tokens, 200)


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"tools": [{"type": "function", "function": {"name": "no name"}}]}, "tools.0.function.name"),
        ({"tools": [TOOL, TOOL]}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "string"}}}]},
         "tools.0.function.parameters"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": "maybe"}, "tool_choice"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs.messages"),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]}]}, "messages.0.tool_calls"),
        ({"messages": [{"role": "assistant", "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "f", "arguments": "["}}]}]},
         "messages.0.tool_calls.0.function.arguments"),
    ],
)  # fmt: skip
def test_mistakes_in_tools_are_named(client: openai.OpenAI, given: dict[str, Any], param: str) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}]} | given
    with pytest.raises(openai.BadRequestError) as refusal:
        client.post("/chat/completions", body=body, cast_to=object)
    assert refusal.value.param == param
    assert param in refusal.value.message
