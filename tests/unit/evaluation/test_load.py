"""Load on an endpoint: when requests leave, and what is counted."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
from aiohttp import web

from entmtp.errors import EntMTPError
from entmtp.evaluation.load.load_summary import Slo, outcome_table, speedup, summarise_load
from entmtp.evaluation.load.traffic import Endpoint, Outcome, Traffic, arrivals
from entmtp.evaluation.load.turns import in_turns, texts_of


class Crowd:
    """How many requests a service has had at once."""

    def __init__(self, together: int) -> None:
        self.barrier = asyncio.Barrier(together)
        self.running = self.most = 0

    def enter(self) -> None:
        self.running += 1
        self.most = max(self.most, self.running)


@asynccontextmanager
async def service(together: int) -> AsyncIterator[tuple[str, Crowd]]:
    """A service on a socket that writes three words, two at first; 'fail', 'odd', 'cut' and 'full' are what they say.

    'meet' waits until so many requests are there ``together``.
    """
    crowd = Crowd(together)

    async def chat(request: web.Request) -> web.StreamResponse:
        crowd.enter()
        try:
            return await answered(request)
        finally:
            crowd.running -= 1

    async def answered(request: web.Request) -> web.StreamResponse:
        prompt = (await request.json())["messages"][0]["content"]
        if prompt == "full":
            return web.json_response({"error": {"message": "later", "type": "rate_limit_error"}}, status=429)
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)

        async def send(**changes: Any) -> None:
            base = {"id": "x", "object": "chat.completion.chunk", "created": 0, "model": "m", "choices": []}
            await response.write(f"data: {json.dumps(base | changes)}\n\n".encode())

        def delta(text: str) -> list[dict[str, Any]]:
            return [{"index": 0, "delta": {"content": text}, "finish_reason": None}]

        await send(choices=delta(""))
        await send(choices=delta(f"{prompt} two"))
        if prompt == "meet":
            await crowd.barrier.wait()
        await asyncio.sleep(0.001)
        if prompt == "fail":
            await response.write(b'data: {"error": {"message": "died", "type": "unavailable_error"}}\n\n')
            return response
        if prompt == "odd":
            await response.write(b'data: {"error": "died"}\n\n')
            return response
        if prompt == "cut":
            return response
        await send(choices=delta(" three"))
        usage = {"prompt_tokens": 1, "completion_tokens": 3, "total_tokens": 4, "speculation": {"tau": 1.5}}
        await send(usage=usage)
        await response.write(b"data: [DONE]\n\n")
        return response

    application = web.Application()
    application.router.add_post("/v1/chat/completions", chat)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1", crowd
    finally:
        await runner.cleanup()


def asked(*prompts: str, users: int | None = 1, rate: float = 0.0, together: int = 1) -> tuple[list[Outcome], Crowd]:
    async def scene() -> tuple[list[Outcome], Crowd]:
        async with service(together) as (url, crowd):
            traffic = Traffic(Endpoint("e", url, "m"), prompts, 3, 30.0)
            numbers = range(len(prompts))
            if users is not None:
                return await traffic.closed(numbers, users, lambda _: None), crowd
            return await traffic.open(numbers, rate, 0, lambda _: None), crowd

    return asyncio.run(scene())


def test_a_request_is_taken_apart() -> None:
    ((outcome,), _) = asked("one")
    assert outcome.error is None
    assert outcome.text == "one two three"
    assert (outcome.tokens, outcome.tau, len(outcome.chunks)) == (3, 1.5, 2)
    assert outcome.itl == [outcome.chunks[1] - outcome.chunks[0]]
    assert outcome.tpot == pytest.approx(outcome.itl[0] / 2)
    assert 0 < outcome.ttft < outcome.seconds


def test_errors_have_kinds() -> None:
    outcomes, _ = asked("full", "fail", "odd", "cut", "good", users=2)
    kinds = ["HTTP 429", "stream: unavailable_error", "stream: error", "stream cut", None]
    assert [one.error for one in outcomes] == kinds


def test_nobody_there_is_an_error_too() -> None:
    traffic = Traffic(Endpoint("e", "http://127.0.0.1:9/v1", "m"), ["x"], 3, 10.0)
    (outcome,) = asyncio.run(traffic.closed([0], 1, lambda _: None))
    assert outcome.error == "connection"


def test_a_closed_loop_has_as_many_requests_as_users() -> None:
    outcomes, crowd = asked(*["meet"] * 6, users=3, together=3)
    assert [one.error for one in outcomes] == [None] * 6
    assert crowd.most == 3


def test_an_open_loop_does_not_wait_for_answers() -> None:
    outcomes, crowd = asked(*["meet"] * 10, users=None, rate=500.0, together=10)
    assert [one.error for one in outcomes] == [None] * 10
    assert crowd.most == 10


def test_requests_leave_at_random_moments() -> None:
    moments = list(itertools.islice(arrivals(4.0, seed=1), 4000))
    assert moments == list(itertools.islice(arrivals(4.0, seed=1), 4000))
    gaps = np.diff(moments)
    assert gaps.mean() == pytest.approx(1 / 4, rel=0.05)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)  # as an exponential distribution's


def outcome(number: int, began: float, *chunks: float, error: str | None = None, text: str = "t") -> Outcome:
    ended = chunks[-1] if chunks else began
    return Outcome(number, began, list(chunks), ended, text, 2 * len(chunks), 2.0, error)


def test_what_users_saw_in_numbers() -> None:
    rounds = [[outcome(0, 0.0, 0.1, 0.4), outcome(1, 0.0, 0.5, 2.0, text="other"), outcome(2, 0.0, error="HTTP 429")]]
    summary = summarise_load("e", rounds, Slo(ttft=0.2, tpot=0.2), {(0, 0): "t", (0, 1): "t"})
    assert summary.requests == 3
    assert summary.errors == {"HTTP 429": 1}
    assert summary.tokens_per_second == pytest.approx(8 / 2.0)
    assert summary.kept == pytest.approx(1 / 3)
    assert summary.goodput == pytest.approx(1 / 2.0)
    assert summary.percentiles["ttft"][50] == pytest.approx(0.3)
    assert summary.percentiles["tpot"][50] == pytest.approx((0.1 + 0.5) / 2)
    assert summary.percentiles["e2e"][99] == pytest.approx(np.percentile([0.4, 2.0], 99))
    assert summary.differing == 1
    assert summary.metrics()["errors.HTTP 429"] == 1.0
    assert outcome_table({"e": rounds}).num_rows == 3


def test_two_endpoints_are_compared_on_what_both_answered() -> None:
    fast = [[outcome(at, 0.0, 0.1, 1.0) for at in range(4)]]
    slow = [[outcome(at, 0.0, 0.3, 2.0) for at in range(3)] + [outcome(3, 0.0, error="timeout")]]
    found = speedup(fast, slow, "e2e")
    assert found is not None
    assert found.value == pytest.approx(2.0)
    first = speedup(fast, slow, "ttft")
    assert first is not None
    assert first.value == pytest.approx(3.0)
    assert speedup(fast, [[outcome(0, 0.0, error="x")]], "e2e") is None


@pytest.mark.parametrize("text", ["", "a", "=http://x", "a=x", "a=ftp://x"])
def test_an_endpoint_needs_a_name_and_an_address(text: str) -> None:
    with pytest.raises(EntMTPError, match="endpoint"):
        Endpoint.parse(text, "m", "k")


def test_an_endpoint_may_name_a_method() -> None:
    found = Endpoint.parse("a=http://x/v1#hydra", "m", "k")
    assert (found.name, found.url, found.method) == ("a", "http://x/v1", "hydra")


def test_endpoints_take_turns_and_who_is_first_changes() -> None:
    traffic = [Traffic(Endpoint(name, "http://x", "m"), ["p"], 1, 1.0) for name in ("a", "b")]
    order: list[tuple[str, int]] = []

    async def send(one: Traffic, at: int) -> list[Outcome]:
        order.append((one.endpoint.name, at))
        return [Outcome(at, 0.0, text=one.endpoint.name)]

    found = asyncio.run(in_turns(traffic, 3, send))
    assert order == [("a", 0), ("b", 0), ("b", 1), ("a", 1), ("a", 2), ("b", 2)]
    assert texts_of(found["b"]) == {(at, at): "b" for at in range(3)}
