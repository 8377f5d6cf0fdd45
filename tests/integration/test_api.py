"""The HTTP API over an engine with prepared answers: keys, limits, refusals, errors in a stream, the log."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncGenerator, Sequence
from typing import Any, NamedTuple

import pytest
from fastapi.testclient import TestClient

from deployments.engines.client import EngineClient
from deployments.engines.deaths import RETRIED_HEADER
from deployments.engines.rate_limit import RateLimiter
from deployments.http.access_log import LogSink
from deployments.http.auth import ApiKeys, _digest
from deployments.http.routes import make_api
from deployments.log_file import LOGGED_HEADER
from deployments.protocol.errors import FULL_HEADER
from deployments.protocol.messages import Failure, GenerateCall, SpeculationStats, TokenDelta
from deployments.settings import AppArgs

ENGINE = {"name": "e", "model_name": "m", "engine": {"context": 256}}
ACCOUNT = SpeculationStats("entmtp-dynamic", "sharegpt", 2, 8, 2, [1, 1], 3, {"draft": 1.0, "verify": 2.0}, 0, 0.0, 3.0)
GOOD = [TokenDelta(0, [504, 253], " a b"), TokenDelta(0, [28], " c", finish_reason="stop", stats=ACCOUNT)]
SECRET = "sk-secret"
CHAT = {"model": "m", "messages": [{"role": "user", "content": "a private question"}], "max_tokens": 8}


class Answers:
    """Stands for Serve's handle of an engine: every call is answered with what is given."""

    def __init__(self, items: Sequence[TokenDelta | Failure | Exception | asyncio.Event]) -> None:
        self.items = items
        self.calls: list[GenerateCall] = []
        self.pause = 0.0
        self.waiting = False

    @property
    def generate(self) -> Answers:
        return self

    def options(self, *, stream: bool) -> Answers:
        return self

    def remote(self, call: GenerateCall) -> Answers:
        self.calls.append(call)
        return self

    def cancel(self) -> None:
        pass

    async def __aiter__(self) -> AsyncGenerator[TokenDelta | Failure]:
        await asyncio.sleep(self.pause)
        for item in self.items:
            if isinstance(item, Exception):
                raise item
            if isinstance(item, asyncio.Event):
                self.waiting = True
                await item.wait()
            else:
                yield item


class Remote:
    """Stands for Serve's handle of the limiter."""

    def __init__(self, limiter: RateLimiter) -> None:
        self._limiter = limiter

    @property
    def take(self) -> Remote:
        return self

    async def remote(self, key: str, tokens: int) -> float:
        return self._limiter.take(key, tokens)


Lines = list[dict[str, Any]]


def api(
    *items: TokenDelta | Failure | Exception, keys: ApiKeys | None = None, lines: Lines | None = None, **args: Any
) -> tuple[TestClient, Answers]:
    settings = AppArgs.parse(**{"engines": [ENGINE]} | args)
    answers = Answers(items or GOOD)

    async def ready() -> dict[str, bool]:
        return {"e": bool(items)}

    async def metrics() -> str:
        return "ray_entmtp_x 1\n"

    service = EngineClient(settings, {"e": answers}, Remote(RateLimiter(settings.limits)))
    written: Lines = [] if lines is None else lines
    log = LogSink(lambda line: written.append(dict(line)), b"a secret", settings.log_prompts)
    made = make_api(service, keys or ApiKeys({}), ready, metrics, log)
    return TestClient(made, raise_server_exceptions=False), answers


def events(text: str) -> list[Any]:
    found = [line.removeprefix("data: ") for line in text.splitlines() if line]
    return [one if one == "[DONE]" else json.loads(one) for one in found]


def test_everything_but_probes_needs_the_key() -> None:
    client, answers = api(keys=ApiKeys({"alice": _digest(SECRET)}))
    for method, path in (
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/completions"),
        ("POST", "/tokenize"),
        ("GET", "/v1/models"),
        ("GET", "/v1/models/m"),
        ("GET", "/metrics"),
    ):
        for headers in ({}, {"Authorization": "Bearer wrong"}):
            answer = client.request(method, path, json=CHAT if method == "POST" else None, headers=headers)
            assert answer.status_code == 401, path
            assert answer.json()["error"]["type"] == "authentication_error"
            assert answer.headers["www-authenticate"] == "Bearer"
    assert client.get("/health").status_code == 200
    assert client.get("/ready").status_code == 503
    assert not answers.calls
    headers = {"Authorization": f"Bearer {SECRET}"}
    assert client.post("/v1/chat/completions", json=CHAT, headers=headers).status_code == 200
    assert client.get("/metrics", headers=headers).text == "ray_entmtp_x 1\n"


@pytest.mark.parametrize(
    ("failure", "status", "kind"),
    [
        (Failure("invalid", "prompt: too long"), 400, "invalid_request_error"),
        (Failure("full", "later"), 429, "rate_limit_error"),
        (Failure("failed", "model: nan"), 500, "server_error"),
        (Failure("fatal", "service: two"), 500, "server_error"),
        (Failure("unavailable", "loop"), 503, "unavailable_error"),
        (ZeroDivisionError(), 500, "server_error"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_an_engine_refuses_has_a_status(
    failure: Failure | Exception, status: int, kind: str, stream: bool
) -> None:
    client, _ = api(failure)
    answer = client.post("/v1/chat/completions", json=CHAT | {"stream": stream})
    assert answer.status_code == status
    assert answer.json()["error"]["type"] == kind
    assert (answer.headers.get("retry-after") == "1") == (status == 429)
    # OpenAI's clients would send what can't succeed twice more.
    hopeless = isinstance(failure, Failure) and failure.kind in {"failed", "fatal"}
    assert answer.headers.get("x-should-retry") == ("false" if hopeless else None)


@pytest.mark.parametrize("failure", [Failure("failed", "model: nan"), ZeroDivisionError()])
def test_what_breaks_a_stream_is_its_last_event(failure: Failure | Exception) -> None:
    client, _ = api(GOOD[0], failure)
    answer = client.post("/v1/chat/completions", json=CHAT | {"stream": True})
    assert answer.status_code == 200
    *chunks, last = events(answer.text)
    assert last["error"]["type"] == "server_error"
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks) == " a b"


def test_usage_counts_prompt_and_answer() -> None:
    client, answers = api()
    body = client.post("/v1/chat/completions", json=CHAT).json()
    (call,) = answers.calls
    assert body["usage"]["prompt_tokens"] == len(call.prompt)
    assert body["usage"]["completion_tokens"] == 3
    assert body["usage"]["speculation"]["tau"] == 1.5
    assert body["metrics"]["speculative_decoding"]["mean_acceptance_length"] == 2.0
    assert body["choices"][0]["message"]["content"] == " a b c"
    assert body["choices"][0]["finish_reason"] == "stop"
    streamed = client.post(
        "/v1/chat/completions", json=CHAT | {"stream": True, "stream_options": {"include_usage": True}}
    )
    *_, usage, done = events(streamed.text)
    assert usage["usage"] == body["usage"]
    assert usage["metrics"] == body["metrics"]
    assert usage["choices"] == []
    assert done == "[DONE]"


def test_every_answer_is_a_call_of_its_own_and_comes_in_its_place() -> None:
    client, answers = api()
    body = client.post("/v1/completions", json={"model": "m", "prompt": ["a", "b c d e"], "n": 8}).json()
    assert [choice["index"] for choice in body["choices"]] == list(range(16))
    assert [call.number for call in answers.calls] == [*range(8), *range(8)]
    assert [call.prompt_number for call in answers.calls] == [0] * 8 + [1] * 8
    assert len({call.id for call in answers.calls}) == 16
    assert len({call.params.seed for call in answers.calls}) == 1
    lengths = [len(answers.calls[0].prompt), len(answers.calls[-1].prompt)]
    assert lengths[0] < lengths[1]
    assert body["usage"]["prompt_tokens"] == sum(lengths)  # each prompt once
    assert body["usage"]["completion_tokens"] == 16 * 3
    assert body["metrics"] is None


def test_a_continuation_has_vllms_metrics_whole_and_at_the_end_of_a_stream() -> None:
    client, _ = api()
    requested = {"model": "m", "prompt": "a"}
    whole = client.post("/v1/completions", json=requested).json()
    assert whole["metrics"]["speculative_decoding"]["acceptance_histogram"] == [1, 0, 1, 0]
    streamed = client.post(
        "/v1/completions", json=requested | {"stream": True, "stream_options": {"include_usage": True}}
    )
    *chunks, last, _ = events(streamed.text)
    assert last["metrics"] == whole["metrics"]
    assert all("metrics" not in chunk for chunk in chunks)


def test_what_never_fits_is_told_so() -> None:
    client, answers = api()
    answer = client.post("/v1/completions", json={"model": "m", "prompt": ["a"] * 17})
    assert answer.status_code == 400
    assert "17 prompts are more than 16" in answer.json()["error"]["message"]
    assert FULL_HEADER.decode() not in answer.headers
    assert not answers.calls


def test_every_call_has_a_seed_and_an_id_of_its_own() -> None:
    client, answers = api()
    for _ in range(2):
        client.post("/v1/chat/completions", json=CHAT, headers={"x-request-id": "same"})
    first, second = answers.calls
    assert first.params.seed is not None
    assert first.params.seed != second.params.seed
    assert first.id != second.id
    assert first.id.startswith("same.")


def test_a_key_that_asks_too_much_is_told_when_to_come_back() -> None:
    client, _ = api(limits={"requests_per_minute": 1})
    assert client.post("/v1/chat/completions", json=CHAT).status_code == 200
    answer = client.post("/v1/chat/completions", json=CHAT)
    assert answer.status_code == 429
    assert 0 < int(answer.headers["retry-after"]) <= 60
    assert answer.json()["error"]["code"] == "rate_limit_exceeded"
    assert FULL_HEADER.decode() not in answer.headers  # others' requests are still welcome


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"n": 17}, "n"),
        ({"max_tokens": 250}, "max_tokens"),
        ({"max_completion_tokens": 250}, "max_completion_tokens"),
        ({"messages": [{"role": "user", "content": "word " * 300}]}, "messages"),
        ({"messages": [{"role": "user", "content": "word " * 100_000}]}, "messages"),
    ],
)
def test_what_is_too_much_is_refused_before_an_engine_sees_it(given: dict[str, Any], param: str) -> None:
    client, answers = api()
    answer = client.post("/v1/chat/completions", json=CHAT | given)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert not answers.calls


@pytest.mark.parametrize(("own", "most", "status"), [(0.01, 600.0, 504), (None, 0.01, 504), (5.0, 0.01, 504)])
@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_has_a_deadline(own: float | None, most: float, status: int, stream: bool) -> None:
    client, answers = api(limits={"request_seconds": most})
    answers.pause = 3600.0
    answer = client.post("/v1/chat/completions", json=CHAT | {"timeout_s": own, "stream": stream})
    assert answer.status_code == status
    assert answer.json()["error"]["type"] == "timeout_error"


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
    items: list[TokenDelta | Failure | Exception], status: int, stream: bool
) -> None:
    lines: Lines = []
    client, _ = api(*items, lines=lines)
    client.post("/v1/chat/completions", json=CHAT | {"stream": stream})
    (line,) = lines
    assert line["status"] == status
    assert line["engine"] == "e"
    assert line["new_tokens"] == sum(len(item.tokens) for item in items if isinstance(item, TokenDelta))
    assert (line["first_token_seconds"] is None) == (not isinstance(items[0], TokenDelta))
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


@pytest.mark.parametrize(("headers", "tries"), [({}, 2), ({RETRIED_HEADER.decode(): "1"}, 1)])
def test_a_request_whose_ingress_died_has_had_its_second_chance(headers: dict[str, str], tries: int) -> None:
    client, answers = api(Failure("dead", "loop"))
    answer = client.post("/v1/chat/completions", json=CHAT, headers=headers)
    assert answer.status_code == 500
    assert "not tried again" in answer.json()["error"]["message"]
    assert len(answers.calls) == tries


def test_the_refusal_of_a_full_engine_is_marked_for_the_proxy() -> None:
    client, _ = api(Failure("full", "engine: full"))
    assert client.post("/v1/chat/completions", json=CHAT).headers[FULL_HEADER.decode()]
