"""Requests that outlive their ingress."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from deployments import proxy_settings
from deployments.addresses import ONGOING_PATH
from deployments.engines.deaths import RETRIED_HEADER, retries_left
from deployments.http import proxy_middleware
from deployments.http.proxy_middleware import ProxyMiddleware
from deployments.protocol.errors import FULL_HEADER
from deployments.proxy_settings import ProxySettings
from tests.helpers.proxied_ingresses import DONE, LOGGED, PATH, Ingresses, body, lines, part, send_through, start

EVENTS = [(b"content-type", b"text/event-stream; charset=utf-8")]


@pytest.fixture(autouse=True)
def logs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder where the ingresses log."""
    monkeypatch.setattr(proxy_settings, "read_proxy_settings", lambda: ProxySettings(tmp_path))
    return tmp_path


@pytest.fixture
def long_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what a middleware knows of a full engine until the test ends, however slow the machine is."""
    monkeypatch.setattr(proxy_middleware, "_FULL_SECONDS", 600.0)
    monkeypatch.setattr(proxy_middleware, "_PROBE_SECONDS", 600.0)


FULL = [start(429, [(FULL_HEADER, b"1"), (b"retry-after", b"3"), LOGGED]), part(b"full")]


def test_a_request_without_an_answer_goes_to_another_ingress() -> None:
    app = Ingresses([], DONE)
    given = [(RETRIED_HEADER, b"1")]  # a client's word does not count
    assert send_through(app, body(b"ab", more=True), body(b"cd"), headers=given)[-1]["body"] == b"done"
    assert app.bodies == [b"abcd"] * 2
    assert [RETRIED_HEADER in headers for headers in app.headers] == [False, True]
    assert [retries_left({"headers": list(headers.items())}) for headers in app.headers] == [1, 0]


@pytest.mark.parametrize("path", ["/v1/messages", "/prefix/v1/messages"])
def test_messages_have_errors_as_anthropic_has_them(path: str, logs: Path) -> None:
    cut = Ingresses([start(headers=[*EVENTS, LOGGED]), part(b"event: ping\n\n", more=True)])
    name, data = send_through(cut, body(b""), path=path)[-1]["body"].decode().strip().splitlines()
    assert name == "event: error"
    assert json.loads(data.removeprefix("data: "))["error"]["type"] == "overloaded_error"
    sent = send_through(Ingresses([start(503), part(b"no application")]), body(b""), path=path)
    assert (sent[0]["status"], json.loads(sent[1]["body"])["type"]) == (503, "error")
    assert [line["error"]["type"] for line in lines(logs, 2)] == ["unavailable_error"] * 2


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/messages"])
def test_a_full_engine_refuses_requests_of_every_kind(path: str, long_memory: None) -> None:
    request = body(json.dumps({"model": "m"}).encode())
    through = ProxyMiddleware(Ingresses(FULL, DONE))
    assert send_through(through, request, path=path)[0]["status"] == 429
    assert send_through(through, request, path=path)[0]["status"] == 429


def test_a_stream_that_was_cut_ends_with_an_error_event(logs: Path) -> None:
    app = Ingresses([start(headers=[*EVENTS, LOGGED]), part(b"data: 1\n\n", more=True)])
    sent = send_through(app, body(b""))
    assert len(app.bodies) == 1
    (line,) = lines(logs, 1)
    assert line["status"] == 503
    assert line["error"]["type"] == "unavailable_error"
    assert not sent[-1].get("more_body", False)
    assert json.loads(sent[-1]["body"].removeprefix(b"data: "))["error"]["type"] == "unavailable_error"


def test_a_request_that_ends_its_ingresses_ends_two(logs: Path) -> None:
    app = Ingresses([], [], [], [])
    sent = send_through(app, body(b'{"model": "a"}'), headers=[(b"x-request-id", b"mine")])
    assert sent[0]["status"] == 500
    assert dict(sent[0]["headers"])[b"x-should-retry"] == b"false"
    assert "not tried again" in json.loads(sent[1]["body"])["error"]["message"]
    assert len(app.bodies) == 2
    (line,) = lines(logs, 1)
    assert line["request_id"] == "mine"
    assert line["status"] == 500
    assert "model" not in line  # no engine has refused it, so it may be any text
    assert line["path"] == PATH
    assert line["error"]["type"] == "server_error"


def test_a_name_that_no_engine_has_is_not_logged(logs: Path) -> None:
    send_through(Ingresses([], []), body(json.dumps({"model": "a long text " * 5000}).encode()))
    assert len(lines(logs, 1)) == 1
    (path,) = logs.glob("proxy-*.jsonl")
    assert "a long text" not in path.read_text()
    assert path.stat().st_size < 1000


def test_a_client_that_goes_before_its_refusal_has_a_line(logs: Path) -> None:
    async def receive() -> Message:
        return body(b"{}")

    async def send(message: Message) -> None:
        raise OSError("the client has gone")

    scope = {"type": "http", "method": "POST", "path": PATH, "headers": [(b"x-request-id", b"mine")]}
    with pytest.raises(OSError, match="gone"):
        asyncio.run(ProxyMiddleware(Ingresses([], []))(scope, receive, send))
    (line,) = lines(logs, 1)
    assert (line["request_id"], line["status"]) == ("mine", 500)


def test_an_answer_is_not_touched() -> None:
    answer = [start(), part(b"a", more=True), part(b"b")]
    assert send_through(Ingresses([start(headers=[LOGGED]), *answer[1:]]), body(b"")) == answer


@pytest.mark.parametrize("given", [b"", b"mine", b"not\nharmless", b"x" * 200])
def test_a_request_keeps_its_id_until_it_is_refused(given: bytes) -> None:
    app = Ingresses([], [])
    refusal = send_through(app, body(b"a"), headers=[(b"x-request-id", given)] if given else [])[0]
    (request_id,) = {headers[b"x-request-id"] for headers in app.headers}
    assert dict(refusal["headers"])[b"x-request-id"] == request_id
    assert (request_id == given) == (given == b"mine")


def test_what_serve_answers_itself_is_logged_here_and_what_an_ingress_answers_is_not(logs: Path) -> None:
    through = ProxyMiddleware(Ingresses(DONE, [start(503), part(b"no application")], DONE, [start(), part(b"success")]))
    send_through(through, body(b""))
    send_through(through, body(b""), path="/nothing")
    send_through(through, body(b""))
    send_through(through, body(b""), path="/-/healthz")
    (line,) = lines(logs, 2)
    assert (line["status"], line["path"]) == (503, "/nothing")


def test_a_folder_that_can_not_be_written_ends_no_request(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(proxy_settings, "read_proxy_settings", lambda: ProxySettings(tmp_path / "file"))
    assert send_through(Ingresses([], []), body(b""))[0]["status"] == 500


def test_nothing_is_sent_again_for_a_client_that_has_gone() -> None:
    app = Ingresses([])
    assert send_through(app, body(b"a", more=True), {"type": "http.disconnect"}) == []
    assert app.bodies == []


def test_a_body_too_large_to_keep_is_not_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy_middleware, "_REPLAYED_BYTES", 3)
    app = Ingresses([], DONE)
    assert send_through(app, body(b"abcd"))[0]["status"] == 503
    assert len(app.bodies) == 1


@pytest.mark.usefixtures("long_memory")
def test_a_full_engine_refuses_the_next_ones_at_the_door(logs: Path) -> None:
    app = Ingresses(FULL, DONE)
    at_the_door = ProxyMiddleware(app)
    chat, other = b'{"model": "a"}', b'{"model": "b"}'
    assert send_through(at_the_door, body(chat))[0]["status"] == 429
    refusal, payload = send_through(at_the_door, body(chat))
    assert refusal["status"] == 429
    assert dict(refusal["headers"])[b"retry-after"] == b"3"
    assert json.loads(payload["body"])["error"]["code"] == "rate_limit_exceeded"
    assert len(app.bodies) == 1
    assert send_through(at_the_door, body(other))[-1]["body"] == b"done"
    (line,) = lines(logs, 1)  # the ingress has logged what it answered
    assert (line["status"], line["model"], line["error"]["code"]) == (429, "a", "rate_limit_exceeded")


@pytest.mark.usefixtures("long_memory")
def test_an_engine_is_known_to_be_full_before_the_refused_client_is() -> None:
    at_the_door = ProxyMiddleware(Ingresses(FULL))
    known: list[int] = []

    async def receive() -> Message:
        return body(b'{"model": "a"}')

    async def send(message: Message) -> None:
        known.append(len(at_the_door._full))

    scope = {"type": "http", "path": PATH, "method": "POST", "headers": []}
    asyncio.run(at_the_door(scope, receive, send))
    assert known == [1, 1]


@pytest.mark.usefixtures("long_memory")
@pytest.mark.parametrize(
    ("path", "varied"),
    [
        (PATH, {"speculation": {"max_nodes": 3}}),
        (PATH, {"speculation": {"max_nodes": 4, "method": None}}),
        (PATH, {"speculation": None, "user": "someone else"}),
        (PATH, {"speculation": {}, "temperature": 1}),
        ("/v1/chat/completions", {}),
    ],
)
def test_what_does_not_choose_the_engine_does_not_pass_the_door(path: str, varied: dict[str, Any]) -> None:
    app = Ingresses(FULL)
    at_the_door = ProxyMiddleware(app)
    send_through(at_the_door, body(b'{"model": "a"}'))
    assert send_through(at_the_door, body(json.dumps({"model": "a"} | varied).encode()), path=path)[0]["status"] == 429
    assert len(app.bodies) == 1


@pytest.mark.parametrize(
    ("path", "received"),
    [
        ("/tokenize", [body(b'{"model": "a"}')]),
        ("/other/v1/completions", [body(b'{"model": "a"}')]),
        ("/v1/completions", [body(b'{"model": "a", "speculation": {"method": "hydra"}}')]),
        ("/v1/completions", [body(b'{"model": "a", "speculation": {"policy": "static"}}')]),
        ("/v1/completions", [body(b'{"model": "a", "speculation": {"task": "gsm8k"}}')]),
        ("/v1/completions", [body(b'{"model": "a", "speculation": {"task": ["gsm8k"]}}')]),
        ("/v1/completions", [body(b'{"model": "a", "speculation": 3}')]),
        ("/v1/completions", [body(b'{"model": ["a"]}')]),
        ("/v1/completions", [body(b'{"model":', more=True), body(b' "a"}')]),
        ("/v1/completions", [body(b"not JSON")]),
        ("/v1/completions", [body(b"[1]")]),
    ],
)
def test_what_another_engine_may_serve_passes_the_door(path: str, received: list[Message]) -> None:
    app = Ingresses(FULL, DONE)
    at_the_door = ProxyMiddleware(app)
    send_through(at_the_door, body(b'{"model": "a"}'))
    assert send_through(at_the_door, *received, path=path)[-1]["body"] == b"done"
    assert app.bodies[-1] == b"".join(message["body"] for message in received)


@pytest.mark.parametrize("pause", ["_FULL_SECONDS", "_PROBE_SECONDS"])
def test_a_full_engine_is_asked_again_after_a_moment(monkeypatch: pytest.MonkeyPatch, pause: str) -> None:
    monkeypatch.setattr(proxy_middleware, pause, 0.0)
    at_the_door = ProxyMiddleware(Ingresses(FULL, DONE))
    send_through(at_the_door, body(b'{"model": "a"}'))
    assert send_through(at_the_door, body(b'{"model": "a"}'))[-1]["body"] == b"done"


@pytest.mark.usefixtures("long_memory")
def test_one_request_at_a_time_finds_out_whether_an_engine_is_still_full(monkeypatch: pytest.MonkeyPatch) -> None:
    app = Ingresses(FULL, FULL)
    at_the_door = ProxyMiddleware(app)
    with monkeypatch.context() as patch:
        patch.setattr(proxy_middleware, "_PROBE_SECONDS", 0.0)
        send_through(at_the_door, body(b'{"model": "a"}'))
    for _ in range(5):
        assert send_through(at_the_door, body(b'{"model": "a"}'))[0]["status"] == 429
    assert len(app.bodies) == 2


def test_the_door_does_not_wait_for_a_body_that_does_not_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy_middleware, "_BEGINNING_SECONDS", 0.01)
    app = Ingresses(FULL, DONE)
    at_the_door = ProxyMiddleware(app)
    send_through(at_the_door, body(b'{"model": "a"}'))
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

        await at_the_door({"type": "http", "method": "POST", "path": PATH, "headers": []}, receive_late, send)

    asyncio.run(scene())
    assert sent[-1]["body"] == b"done"


def test_it_says_how_many_requests_it_passes_on() -> None:
    counts: list[int] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        counts.append(ongoing())
        for message in DONE:
            await send(message)

    passing = ProxyMiddleware(app)

    def ongoing() -> int:
        sent: list[Message] = []

        async def send(message: Message) -> None:
            sent.append(message)

        asking = passing({"type": "http", "path": ONGOING_PATH, "headers": []}, receive, send)
        with pytest.raises(StopIteration):
            asking.send(None)
        return int(json.loads(sent[-1]["body"])["requests"])

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def lost(message: Message) -> None:
        raise OSError("the client has gone")

    async def reported(message: Message) -> None:
        pass

    for path, send in (("/v1/completions", reported), ("/metrics", reported), ("/v1/completions", lost)):
        with contextlib.suppress(OSError):
            asyncio.run(passing({"type": "http", "path": path, "headers": []}, receive, send))
    assert counts == [1, 0, 1]
    assert ongoing() == 0
