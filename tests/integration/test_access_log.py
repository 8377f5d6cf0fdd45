"""The access log: one line for each request, however it ends."""

from __future__ import annotations

import asyncio
import hashlib
import json
from typing import Any, NamedTuple

import pytest

from deployments.http.access_log import LogSink
from deployments.http.auth import ApiKeys, _digest
from deployments.log_file import LOGGED_HEADER
from deployments.protocol.messages import Failure
from entmtp.decoding.outputs import RequestOutput
from tests.helpers.http_api import CHAT, GOOD, SECRET, Lines, api


@pytest.mark.parametrize("wanted", [False, True])
def test_the_log_holds_texts_only_where_they_are_wanted(wanted: bool) -> None:
    lines: Lines = []
    client, _ = api(lines=lines, log_prompts=wanted)
    client.post("/v1/chat/completions", json=CHAT | {"user": "alice@example.com"})
    client.post("/v1/chat/completions", json=CHAT | {"n": 17})
    client.post("/v1/chat/completions", json=CHAT | {"messages": [{"role": "user", "content": ["a private question"]}]})
    assert [line["status"] for line in lines] == [200, 400, 400]
    assert lines[0]["new_tokens"] == 3
    assert lines[0]["finish_reasons"] == ["stop"]
    assert lines[1]["error"]["param"] == "n"
    text = json.dumps(lines)
    assert "alice@example.com" not in text
    assert ("a private question" in text) == wanted
    assert (" a b c" in text) == wanted


def test_users_have_pseudonyms_that_only_this_service_knows() -> None:
    lines: Lines = []
    client, _ = api(lines=lines)
    for user in ("alice", "bob", "alice", None):
        client.post("/v1/chat/completions", json=CHAT | {"user": user})
    first, second, third, none = (line["user"] for line in lines)
    assert first == third != second
    assert none is None
    assert first not in {hashlib.sha256(user).hexdigest()[:16] for user in (b"alice", b"a secretalice")}
    assert first != LogSink(lambda _: None, b"another secret").pseudonym("alice")


class _Refused(NamedTuple):
    method: str
    path: str
    body: bytes
    status: int
    key: str | None = "alice"


@pytest.mark.parametrize(
    "given",
    [
        _Refused("POST", "/v1/chat/completions", json.dumps(CHAT).encode(), 200),
        _Refused("POST", "/v1/chat/completions", b"{", 400),
        _Refused("POST", "/v1/chat/completions", b'{"model": 1}', 400),
        _Refused("POST", "/v1/chat/completions", json.dumps(CHAT | {"model": "x"}).encode(), 404),
        _Refused("POST", "/v1/completions", b"x" * 3_000_000, 413),
        _Refused("POST", "/v1/completions", b"{}", 401, key=None),
        _Refused("GET", "/v1/models", b"", 200),
        _Refused("GET", "/v1/nothing", b"", 404),
        _Refused("DELETE", "/v1/models", b"", 405),
        _Refused("GET", "/health", b"", 200),
        _Refused("GET", "/v1/" + "x" * 5000, b"", 404),
    ],
)
def test_every_request_has_one_line_however_it_ends(given: _Refused) -> None:
    lines: Lines = []
    client, _ = api(lines=lines, keys=ApiKeys({"alice": _digest(SECRET)}))
    headers = {"x-request-id": "mine", "content-type": "application/json"}
    headers |= {} if given.key is None else {"Authorization": f"Bearer {SECRET}"}
    answer = client.request(given.method, given.path, content=given.body, headers=headers)
    (line,) = lines
    assert answer.status_code == line["status"] == given.status
    assert answer.headers[LOGGED_HEADER.decode()]  # so that the proxy writes none
    assert line["request_id"] == "mine"
    assert line["method"] == given.method
    assert line["path"] == given.path[:200]
    assert line["seconds"] >= 0
    assert ("error" in line) == (given.status >= 400)
    if given.status in {401, 200} and given.path.startswith("/v1"):
        assert line["key"] == given.key


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("items", "status"),
    [
        ([Failure("full", "later")], 429),
        ([Failure("failed", "model: nan")], 500),
        ([ZeroDivisionError()], 500),
        ([GOOD[0], Failure("failed", "model: nan")], 500),
        ([GOOD[0], ZeroDivisionError()], 500),
        (GOOD, 200),
    ],
)
def test_an_answer_that_breaks_has_one_line(
    items: list[RequestOutput | Failure | Exception], status: int, stream: bool
) -> None:
    lines: Lines = []
    client, _ = api(*items, lines=lines)
    client.post("/v1/chat/completions", json=CHAT | {"stream": stream})
    (line,) = lines
    assert line["status"] == status
    assert line["engine"] == "e"
    assert line["new_tokens"] == sum(len(item.tokens) for item in items if isinstance(item, RequestOutput))
    assert (line["first_token_seconds"] is None) == (not isinstance(items[0], RequestOutput))
    if status == 500 and isinstance(items[-1], Failure):
        assert line["error"]["message"] == "model: nan"


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_has_a_line_with_what_it_got(stream: bool) -> None:
    lines: Lines = []
    client, answers = api(lines=lines)
    answers.items = [GOOD[0], asyncio.Event()]
    body = json.dumps(CHAT | {"stream": stream}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": headers, "query_string": b""}

    async def scene() -> None:
        came = asyncio.Event()

        async def receive() -> dict[str, Any]:
            if came.is_set():
                await asyncio.Event().wait()
            came.set()
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Any) -> None:
            pass

        served: Any = client.app
        task = asyncio.create_task(served(dict(scope), receive, send))
        while not answers.waiting:
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(scene())
    (line,) = lines
    assert line["status"] == 499
    assert line["new_tokens"] == 2
