"""Streams of calls and reasoning: they outlive a replica, and what is wrong with one answer ends that answer alone."""

from __future__ import annotations

import json
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
from fastapi.testclient import TestClient
from ray.exceptions import RayActorError

from deployments.engines import failover
from deployments.protocol.answer_format import AnswerReader
from deployments.protocol.messages import CallStream
from entmtp.decoding.outputs import RequestOutput
from entmtp.models.loading.load import load_tokenizer
from tests.helpers.http_api import CHAT, STATS, Answers, api, events

TEXT = '<think>Hm.</think>I look.\n<tool_call>{"name": "f", "arguments": {"a": "b c"}}</tool_call> so'
TOOL: Any = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
BODY = CHAT | {"tools": [TOOL], "stream": True, "max_tokens": 64}
ENGINE = {"name": "e", "model_name": "m", "engine": {"context": 512}, "reasoning_format": "think"}
Service = tuple[TestClient, Answers, pytest.MonkeyPatch]
PATHS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": BODY,
    "/v1/responses": {"model": "m", "input": "x", "tools": [{"type": "function", **TOOL["function"]}], "stream": True},
    "/v1/messages": {
        "model": "m",
        "max_tokens": 64,
        "messages": [{"role": "user", "content": "x"}],
        "tools": [{"name": "f", "input_schema": {"type": "object"}}],
        "stream": True,
    },
}


class Dying:
    """A replica's response that breaks after ``items``."""

    def __init__(self, items: list[RequestOutput], dies: bool) -> None:
        self._items, self._dies = items, dies

    async def __aiter__(self) -> CallStream:
        for item in self._items:
            yield item
        if self._dies:
            raise RayActorError

    def cancel(self) -> None:
        pass


@cache
def encoded() -> list[tuple[int, str]]:
    """Tokens of the text, each with its own part of it."""
    tokenizer = load_tokenizer("bundled")
    tokens = tokenizer(TEXT)["input_ids"]
    texts = [str(tokenizer.decode(tokens[:at])) for at in range(len(tokens) + 1)]
    return [(token, new[len(old) :]) for token, (old, new) in zip(tokens, pairwise(texts), strict=True)]


def outputs() -> list[RequestOutput]:
    """Outputs with one token each, whose text comes one output later."""
    tokens = [token for token, _ in encoded()]
    late = ["", *(text for _, text in encoded())]
    made = [RequestOutput("r", [token], late[at]) for at, token in enumerate(tokens)]
    return [RequestOutput("r"), *made, RequestOutput("r", text=late[-1], finish_reason="stop", stats=STATS)]


@pytest.fixture(scope="module")
def made() -> tuple[TestClient, Answers]:
    return api(engines=[ENGINE])


@pytest.fixture
def service(made: tuple[TestClient, Answers], monkeypatch: pytest.MonkeyPatch) -> Service:
    async def lost(_: BaseException) -> bool:
        return False

    monkeypatch.setattr(failover, "died_with_its_node", lost)
    monkeypatch.setattr(failover, "_PAUSE_SECONDS", 0.0)
    return *made, monkeypatch


def payloads(text: str) -> list[Any]:
    """Data of the events, without ids and times, which differ in every answer."""
    lines = [line for line in text.splitlines() if line.startswith("data: ") and line != "data: [DONE]"]
    found = [json.loads(line.removeprefix("data: ")) for line in lines]
    return [_without_ids(one) for one in found]


def _without_ids(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_ids(one) for one in value]
    if not isinstance(value, dict):
        return value
    return {
        name: _without_ids(one)
        for name, one in value.items()
        if name not in {"id", "item_id", "call_id", "created", "created_at", "system_fingerprint"}
    }


@pytest.mark.parametrize("path", list(PATHS))
def test_a_stream_neither_repeats_nor_loses_events_when_its_replica_dies(path: str, service: Service) -> None:
    client, answers, patch = service
    whole = outputs()
    patch.setattr(answers, "remote", lambda call: Dying(whole, dies=False))
    expected = [one for one in payloads(client.post(path, json=PATHS[path]).text) if not _is_empty(one)]
    assert TEXT.count("b c") == json.dumps(expected).count('\\"b c\\"') or path != "/v1/chat/completions"
    for died_after in range(1, len(whole), 3):
        attempts = iter([Dying(whole[:died_after], dies=True), Dying(whole, dies=False)])
        patch.setattr(answers, "remote", lambda call, attempts=attempts: next(attempts))
        found = [one for one in payloads(client.post(path, json=PATHS[path]).text) if not _is_empty(one)]
        assert found == expected


def _is_empty(event: Any) -> bool:
    """Whether an event of a chat says nothing; how many of these there are depends on the outputs."""
    choices = event.get("choices")
    return bool(choices) and choices[0]["delta"] == {"content": None} and choices[0]["finish_reason"] is None


@pytest.mark.parametrize("path", list(PATHS))
def test_what_breaks_a_reader_ends_its_own_answer(path: str, service: Service) -> None:
    client, answers, patch = service
    patch.setattr(answers, "remote", lambda call: Dying(outputs(), dies=False))
    read = AnswerReader.read

    def broken(reader: AnswerReader, output: RequestOutput) -> Any:
        if output.finish_reason is not None:
            raise ZeroDivisionError
        return read(reader, output)

    with pytest.MonkeyPatch.context() as context:
        context.setattr(AnswerReader, "read", broken)
        answer = client.post(path, json=PATHS[path])
        assert answer.status_code == 200
        assert "ZeroDivisionError; the log says more" in answer.text
        whole = client.post(path, json=PATHS[path] | {"stream": False})
        assert whole.status_code == 500
        assert "ZeroDivisionError; the log says more" in whole.text
    assert "ZeroDivisionError" not in client.post(path, json=PATHS[path]).text


def test_a_broken_stream_ends_as_each_api_ends_one(service: Service) -> None:
    client, answers, patch = service
    patch.setattr(answers, "remote", lambda call: Dying(outputs()[:8], dies=True))
    texts = {path: client.post(path, json=body).text for path, body in PATHS.items()}
    assert events(texts["/v1/chat/completions"])[-1]["error"]["type"] == "server_error"
    names = [line for line in texts["/v1/responses"].splitlines() if line.startswith("event: ")]
    assert names[-2:] == ["event: error", "event: response.failed"]
    last = payloads(texts["/v1/responses"])[-1]["response"]
    assert (last["status"], last["error"]["code"]) == ("failed", "server_error")
    *_, name, data = texts["/v1/messages"].strip().splitlines()
    assert name == "event: error"
    assert json.loads(data.removeprefix("data: "))["error"]["type"] == "api_error"
