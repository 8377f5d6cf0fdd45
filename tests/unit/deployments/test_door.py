"""Requests that outlive their ingress."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from deployments import door
from deployments.door import Door
from deployments.errors import FULL_HEADER

App = Callable[[Scope, Receive, Send], Any]
EVENTS = [(b"content-type", b"text/event-stream; charset=utf-8")]


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "_PAUSE_SECONDS", 0.0)


def start(status: int = 200, headers: list[tuple[bytes, bytes]] | None = None) -> Message:
    return {"type": "http.response.start", "status": status, "headers": headers or []}


def part(body: bytes, more: bool = False) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": more}


FULL = [start(429, [(FULL_HEADER, b"1"), (b"retry-after", b"3")]), part(b"full")]
DONE = [start(), part(b"done")]


class Ingresses:
    """The first ones die after a part of their answer."""

    def __init__(self, *answers: list[Message]) -> None:
        self.answers = list(answers)
        self.bodies: list[bytes] = []
        self.ids: list[bytes] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body, more = body + message["body"], message["more_body"]
        self.bodies.append(body)
        self.ids.append(dict(scope["headers"])[b"x-request-id"])
        for message in self.answers[len(self.bodies) - 1]:
            await send(message)


def asked(
    app: App, *received: Message, path: str = "/", headers: list[tuple[bytes, bytes]] | None = None
) -> list[Message]:
    """What a client gets that sends these messages."""
    sent: list[Message] = []
    messages = iter(received)

    async def receive() -> Message:
        return next(messages)

    async def send(message: Message) -> None:
        sent.append(message)

    through = app if isinstance(app, Door) else Door(app)
    scope = {"type": "http", "method": "POST", "path": path, "headers": headers or []}
    asyncio.run(through(scope, receive, send))
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


@pytest.mark.parametrize("given", [[], [(b"x-request-id", b"mine")]])
def test_a_request_keeps_its_id_until_it_is_refused(given: list[tuple[bytes, bytes]]) -> None:
    app = Ingresses([], [], [], [])
    refusal = asked(app, body(b"a"), headers=given)[0]
    (request_id,) = set(app.ids)
    assert dict(refusal["headers"])[b"x-request-id"] == request_id
    assert not given or request_id == b"mine"


def test_nothing_is_sent_again_for_a_client_that_has_gone() -> None:
    app = Ingresses([])
    assert asked(app, body(b"a", more=True), {"type": "http.disconnect"}) == []
    assert app.bodies == []


def test_a_body_too_large_to_keep_is_not_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "_REPLAYED_BYTES", 3)
    app = Ingresses([], [start(), part(b"done")])
    assert asked(app, body(b"abcd"))[0]["status"] == 503
    assert len(app.bodies) == 1


def test_a_full_engine_refuses_the_next_ones_at_the_door() -> None:
    app = Ingresses(FULL, DONE)
    at_the_door = Door(app)
    chat, other = b'{"model": "a"}', b'{"model": "b"}'
    assert asked(at_the_door, body(chat), path="/v1/completions")[0]["status"] == 429
    refusal, payload = asked(at_the_door, body(chat), path="/v1/completions")
    assert refusal["status"] == 429
    assert dict(refusal["headers"])[b"retry-after"] == b"3"
    assert json.loads(payload["body"])["error"]["code"] == "rate_limit_exceeded"
    assert len(app.bodies) == 1
    assert asked(at_the_door, body(other), path="/v1/completions")[-1]["body"] == b"done"


@pytest.mark.parametrize(
    ("path", "received"),
    [
        ("/tokenize", [body(b'{"model": "a"}')]),
        ("/v1/completions", [body(b'{"model": "a", "speculation": {"method": "hydra"}}')]),
        ("/v1/completions", [body(b'{"model":', more=True), body(b' "a"}')]),
        ("/v1/completions", [body(b"not JSON")]),
        ("/v1/completions", [body(b"[1]")]),
    ],
)
def test_what_another_engine_may_serve_passes_the_door(path: str, received: list[Message]) -> None:
    app = Ingresses(FULL, DONE)
    at_the_door = Door(app)
    asked(at_the_door, body(b'{"model": "a"}'), path="/v1/completions")
    assert asked(at_the_door, *received, path=path)[-1]["body"] == b"done"
    assert app.bodies[-1] == b"".join(message["body"] for message in received)


@pytest.mark.parametrize("pause", ["_FULL_SECONDS", "_PROBE_SECONDS"])
def test_a_full_engine_is_asked_again_after_a_moment(monkeypatch: pytest.MonkeyPatch, pause: str) -> None:
    monkeypatch.setattr(door, pause, 0.0)
    at_the_door = Door(Ingresses(FULL, DONE))
    asked(at_the_door, body(b'{"model": "a"}'))
    assert asked(at_the_door, body(b'{"model": "a"}'))[-1]["body"] == b"done"


def test_one_request_at_a_time_finds_out_whether_an_engine_is_still_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "_PROBE_SECONDS", 0.2)
    app = Ingresses(FULL, FULL)
    at_the_door = Door(app)
    asked(at_the_door, body(b'{"model": "a"}'))
    time.sleep(0.25)
    for _ in range(5):
        assert asked(at_the_door, body(b'{"model": "a"}'))[0]["status"] == 429
    assert len(app.bodies) == 2


def test_the_door_does_not_wait_for_a_body_that_does_not_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "_BEGINNING_SECONDS", 0.01)
    app = Ingresses(FULL, DONE)
    at_the_door = Door(app)
    asked(at_the_door, body(b'{"model": "a"}'))
    late = iter([body(b'{"model": "a"}')])
    sent: list[Message] = []

    waited: list[bool] = []

    async def scene() -> None:
        async def receive_late() -> Message:
            if not waited:
                waited.append(True)
                await asyncio.sleep(10.0)
            return next(late)

        async def send(message: Message) -> None:
            sent.append(message)

        await at_the_door({"type": "http", "method": "POST", "path": "/", "headers": []}, receive_late, send)

    asyncio.run(scene())
    assert sent[-1]["body"] == b"done"
