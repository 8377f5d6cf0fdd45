"""/v1/messages by Anthropic's own client, with a real engine whose model writes given texts."""

from __future__ import annotations

import json
from typing import Any

import anthropic
import httpx2
import pytest

from tests.helpers.http_api import SECRET
from tests.helpers.scripted_service import CITY, TOOL

TOOLS: list[Any] = [
    {"name": "weather", "description": "The weather in a city.", "input_schema": TOOL["function"]["parameters"]}
]
BODY: dict[str, Any] = {"model": "m", "max_tokens": 64, "messages": [{"role": "user", "content": "say hello"}]}
USE = {"type": "tool_use", "id": "1", "name": "f"}
DEEP = json.loads('{"a":' * 200 + "1" + "}" * 200)
CASES: list[tuple[str, list[tuple[str, Any]], str]] = [
    ("say hello", [("text", "Hello there.")], "end_turn"),
    ("call once", [("text", "I look."), ("tool_use", ("weather", CITY))], "tool_use"),
    ("call twice", [("tool_use", ("weather", CITY))] * 2, "tool_use"),
    ("think", [("thinking", "Hmm."), ("text", "Yes.")], "end_turn"),
    ("think and call", [("thinking", "Hm."), ("tool_use", ("weather", CITY))], "tool_use"),
]


@pytest.fixture(scope="module")
def claude(scripted_url: str) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=scripted_url, api_key=SECRET, max_retries=0)


def fields(prompt: Any, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return {
        "model": "m",
        "max_tokens": 64,
        "messages": messages,
        "tools": TOOLS,
        "extra_body": {"temperature": 0},
    } | more


def create(client: anthropic.Anthropic, prompt: Any, **more: Any) -> Any:
    return client.messages.create(**fields(prompt, **more))


def blocks(message: Any) -> list[tuple[str, Any]]:
    return [
        (one.type, (one.name, one.input) if one.type == "tool_use" else getattr(one, one.type))
        for one in message.content
    ]


@pytest.mark.parametrize(("prompt", "expected", "reason"), CASES)
def test_a_message_has_the_blocks_that_the_model_writes(
    claude: anthropic.Anthropic, prompt: str, expected: list[tuple[str, Any]], reason: str
) -> None:
    message = create(claude, prompt)
    assert (blocks(message), message.stop_reason) == (expected, reason)
    assert message.usage.input_tokens > 0
    with claude.messages.stream(**fields(prompt)) as stream:
        streamed = stream.get_final_message()
    assert (blocks(streamed), streamed.stop_reason) == (expected, reason)
    assert streamed.usage.output_tokens == message.usage.output_tokens > 0


def test_events_come_in_anthropics_order(claude: anthropic.Anthropic) -> None:
    names = [event.type for event in create(claude, "call once", stream=True)]
    assert [name for at, name in enumerate(names) if name != (names[at - 1] if at else "")] == [
        *("message_start", "content_block_start", "content_block_delta", "content_block_stop"),
        *("content_block_start", "content_block_delta", "content_block_stop", "message_delta", "message_stop"),
    ]


def test_a_conversation_goes_on_with_its_blocks(claude: anthropic.Anthropic) -> None:
    first = create(claude, "think and call", system=[{"type": "text", "text": "Be short."}])
    call = first.content[-1].id
    result = {"type": "tool_result", "tool_use_id": call, "content": [{"type": "text", "text": "rain"}]}
    turns = [
        {"role": "user", "content": "think and call"},
        {"role": "assistant", "content": [one.model_dump() for one in first.content]},
        {"role": "user", "content": [result]},
    ]
    assert blocks(create(claude, turns)) == [("text", "It rains.")]


def test_the_end_of_a_message_has_its_reason(claude: anthropic.Anthropic) -> None:
    assert create(claude, "say hello", max_tokens=2).stop_reason == "max_tokens"
    stopped = create(claude, "say hello", stop_sequences=["nothing", " there"])
    assert (blocks(stopped), stopped.stop_reason) == ([("text", "Hello")], "stop_sequence")
    assert stopped.stop_sequence == " there"
    assert create(claude, "say hello", stop_sequences=["nothing"]).stop_reason == "end_turn"
    assert create(claude, "say hello", max_tokens=16_000).stop_reason == "end_turn"
    one = create(claude, "call twice", tool_choice={"type": "auto", "disable_parallel_tool_use": True})
    assert blocks(one) == [("tool_use", ("weather", CITY))]
    none = create(claude, "call once", tool_choice={"type": "none"})
    assert [kind for kind, _ in blocks(none)] == ["text"]
    hidden = create(claude, "think", thinking={"type": "enabled", "budget_tokens": 1024, "display": "omitted"})
    assert blocks(hidden) == [("text", "Yes.")]


def test_tokens_are_counted_as_they_are_read(claude: anthropic.Anthropic) -> None:
    counted = claude.messages.count_tokens(model="m", messages=[{"role": "user", "content": "say hello"}], tools=TOOLS)
    assert counted.input_tokens == create(claude, "say hello").usage.input_tokens


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"max_tokens": None}, "max_tokens: "),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "messages: "),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "messages.0.content.0: "),
        ({"messages": [{"role": "assistant", "content": [USE | {"input": DEEP}]}]}, "messages.0.content.0.input: "),
        ({"tools": [{"name": "f", "input_schema": DEEP}]}, "tools.0.input_schema: "),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools.0.type: "),
        ({"tools": TOOLS * 2}, "tools: "),
        ({"tool_choice": {"type": "tool", "name": "g"}}, "tool_choice: "),
        ({"tool_choice": {"type": "any"}}, "tool_choice: "),
        ({"mcp_servers": [{}]}, "mcp_servers: "),
        ({"unknown": 1}, "unknown: "),
        ({"stop_sequences": [""]}, "stop_sequences.0: "),
    ],
)
def test_mistakes_are_named_in_anthropics_shape(claude: anthropic.Anthropic, given: dict[str, Any], words: str) -> None:
    with pytest.raises(anthropic.BadRequestError) as refusal:
        claude.post("/v1/messages", body=BODY | given, cast_to=object)
    body: Any = refusal.value.body
    assert (body["type"], body["error"]["type"]) == ("error", "invalid_request_error")
    assert body["error"]["message"].startswith(words)
    assert set(body["error"]) == {"type", "message"}


def test_the_key_may_come_in_either_header(scripted_url: str) -> None:
    for path in ("/v1/messages", "/v1/messages/count_tokens", "/v1/chat/completions"):
        for headers, status in (
            ({"x-api-key": SECRET, "anthropic-version": "2023-06-01"}, 200),
            ({"authorization": f"Bearer {SECRET}"}, 200),
            ({"x-api-key": "wrong"}, 401),
            ({"x-api-key": SECRET, "authorization": "Bearer wrong"}, 401),
            ({}, 401),
        ):
            body = {"model": "m", "messages": [{"role": "user", "content": "say hello"}]}
            more = {} if "count" in path else {"max_tokens": 8}
            answer = httpx2.post(f"{scripted_url}{path}", json=body | more, headers=headers)
            assert answer.status_code == status, (path, headers)
            if status == 401:
                assert answer.json()["error"]["type"] == "authentication_error"
                assert ("request_id" in answer.json()) == ("messages" in path)


def test_a_path_or_a_body_that_is_wrong_has_anthropics_shape(claude: anthropic.Anthropic, scripted_url: str) -> None:
    with pytest.raises(anthropic.NotFoundError) as refusal:
        create(claude, "x", model="none")
    assert refusal.value.body["error"]["type"] == "not_found_error"  # type: ignore[index]
    broken = httpx2.post(f"{scripted_url}/v1/messages", content=b"{", headers={"content-type": "application/json"})
    assert (broken.status_code, broken.json()["type"]) == (400, "error")
