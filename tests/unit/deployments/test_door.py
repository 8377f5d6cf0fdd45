"""Requests that outlive their ingress."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from deployments import door
from deployments.door import Door

App = Callable[[Scope, Receive, Send], Any]
EVENTS = [(b"content-type", b"text/event-stream; charset=utf-8")]


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "_PAUSE_SECONDS", 0.0)


def start(status: int = 200, headers: list[tuple[bytes, bytes]] | None = None) -> Message:
    return {"type": "http.response.start", "status": status, "headers": headers or []}


def part(body: bytes, more: bool = False) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": more}


class Ingresses:
    """The first ones die after a part of their answer."""

    def __init__(self, *answers: list[Message]) -> None:
        self.answers = list(answers)
        self.bodies: list[bytes] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body, more = body + message["body"], message["more_body"]
        self.bodies.append(body)
        for message in self.answers[len(self.bodies) - 1]:
            await send(message)


def asked(app: App, *received: Message) -> list[Message]:
    """What a client gets that sends these messages."""
    sent: list[Message] = []
    messages = iter(received)

    async def receive() -> Message:
        return next(messages)

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(Door(app)({"type": "http", "method": "POST", "path": "/"}, receive, send))
    return sent


def body(text: bytes, more: bool = False) -> Message:
    return {"type": "http.request", "body": text, "more_body": more}


def test_a_request_without_an_answer_goes_to_another_ingress() -> None:
    app = Ingresses([], [], [start(), part(b"done")])
    assert asked(app, body(b"ab", more=True), body(b"cd"))[-1]["body"] == b"done"
    assert app.bodies == [b"abcd"] * 3


def test_a_stream_that_was_cut_ends_with_an_error_event() -> None:
    app = Ingresses([start(headers=EVENTS), part(b"data: 1\n\n", more=True)])
    sent = asked(app, body(b""))
    assert len(app.bodies) == 1
    assert not sent[-1].get("more_body", False)
    assert json.loads(sent[-1]["body"].removeprefix(b"data: "))["error"]["type"] == "unavailable_error"


def test_where_none_answers_the_client_hears_so() -> None:
    sent = asked(Ingresses([], [], [], []), body(b""))
    assert sent[0]["status"] == 503
    assert "send it again" in json.loads(sent[1]["body"])["error"]["message"]


def test_an_answer_is_not_touched() -> None:
    answer = [start(), part(b"a", more=True), part(b"b")]
    assert asked(Ingresses(answer), body(b"")) == answer


def test_nothing_is_sent_again_for_a_client_that_has_gone() -> None:
    app = Ingresses([])
    assert asked(app, body(b"a", more=True), {"type": "http.disconnect"}) == []
    assert app.bodies == []


def test_a_body_too_large_to_keep_is_not_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "_REPLAYED_BYTES", 3)
    app = Ingresses([], [start(), part(b"done")])
    assert asked(app, body(b"abcd"))[0]["status"] == 503
    assert len(app.bodies) == 1
