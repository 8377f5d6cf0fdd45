"""The HTTP API over an engine with prepared answers: keys, limits, refusals, errors in a stream, the log."""

from __future__ import annotations

from typing import Any

import pytest

from deployments.engines.deaths import RETRIED_HEADER
from deployments.http.auth import ApiKeys, _digest
from deployments.protocol.errors import FULL_HEADER
from deployments.protocol.messages import Failure
from tests.helpers.http_api import CHAT, GOOD, SECRET, api, events


def test_everything_but_probes_needs_the_key() -> None:
    client, answers = api(keys=ApiKeys({"alice": _digest(SECRET)}))
    for method, path in (
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/completions"),
        ("POST", "/tokenize"),
        ("POST", "/detokenize"),
        ("GET", "/version"),
        ("GET", "/load"),
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
    assert client.get("/ping").status_code == client.post("/ping").status_code == 200
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
        (Failure("late", "later"), 429, "rate_limit_error"),
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
    assert [call.answer_index for call in answers.calls] == [*range(8), *range(8)]
    assert [call.prompt_index for call in answers.calls] == [0] * 8 + [1] * 8
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
    client, answers = api(limits={"cut_max_tokens": False})
    answer = client.post("/v1/chat/completions", json=CHAT | given)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert not answers.calls


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_more_tokens_than_the_context_has_left_are_as_many_as_it_has(field: str) -> None:
    client, answers = api()
    body = {name: value for name, value in CHAT.items() if name != "max_tokens"}
    assert client.post("/v1/chat/completions", json=body | {field: 100_000}).status_code == 200
    (call,) = answers.calls
    assert call.params.max_tokens == 256 - len(call.prompt)


@pytest.mark.parametrize("given", [{"ignore_eos": True}, {"min_tokens": 250}])
def test_a_length_that_is_meant_is_not_cut(given: dict[str, Any]) -> None:
    client, answers = api()
    answer = client.post("/v1/chat/completions", json=CHAT | {"max_tokens": 250} | given)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "context_length_exceeded"
    assert not answers.calls


@pytest.mark.parametrize(("own", "most", "status"), [(0.01, 600.0, 504), (None, 0.01, 504), (5.0, 0.01, 504)])
@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_has_a_deadline(own: float | None, most: float, status: int, stream: bool) -> None:
    client, answers = api(limits={"request_seconds": most})
    answers.pause = 3600.0
    answer = client.post("/v1/chat/completions", json=CHAT | {"timeout_s": own, "stream": stream})
    assert answer.status_code == status
    assert answer.json()["error"]["type"] == "timeout_error"


@pytest.mark.parametrize(("headers", "tries"), [({}, 2), ({RETRIED_HEADER.decode(): "1"}, 1)])
def test_a_request_whose_ingress_died_has_had_its_second_chance(headers: dict[str, str], tries: int) -> None:
    client, answers = api(Failure("dead", "loop"))
    answer = client.post("/v1/chat/completions", json=CHAT, headers=headers)
    assert answer.status_code == 500
    assert "not tried again" in answer.json()["error"]["message"]
    assert len(answers.calls) == tries


def test_the_refusal_of_a_full_engine_is_marked_for_the_proxy() -> None:
    client, _ = api(Failure("full", "engine: full", 17))
    answer = client.post("/v1/chat/completions", json=CHAT)
    assert answer.headers[FULL_HEADER.decode()]
    assert answer.headers["retry-after"] == "17"
    assert "try again in 17 s" in answer.json()["error"]["message"]


def test_a_refusal_for_a_requests_own_deadline_concerns_no_other_request() -> None:
    client, answers = api(Failure("late", "it would wait for 40 s, longer than its 5 s", 35))
    answer = client.post("/v1/chat/completions", json=CHAT | {"timeout_s": 5})
    assert answer.headers["retry-after"] == "35"
    assert "timeout_s: it would wait for 40 s" in answer.json()["error"]["message"]
    assert FULL_HEADER.decode() not in answer.headers
    assert answers.calls[0].max_wait_seconds == 5


def test_a_refusal_for_a_low_priority_concerns_no_other_request() -> None:
    client, _ = api(Failure("late", "engine: a request would wait for 400 s, longer than 300 s", 100))
    answer = client.post("/v1/chat/completions", json=CHAT | {"priority": 1})
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "100")
    assert FULL_HEADER.decode() not in answer.headers


def test_a_refusal_for_the_services_own_deadline_concerns_all() -> None:
    client, _ = api(Failure("late", "it would wait for 900 s, longer than its 600 s", 300))
    assert client.post("/v1/chat/completions", json=CHAT).headers[FULL_HEADER.decode()]


def test_a_request_waits_no_longer_than_the_service_lets_it_run() -> None:
    client, answers = api(limits={"request_seconds": 20})
    client.post("/v1/chat/completions", json=CHAT)
    client.post("/v1/chat/completions", json=CHAT | {"timeout_s": 90})
    assert [call.max_wait_seconds for call in answers.calls] == [20, 20]
