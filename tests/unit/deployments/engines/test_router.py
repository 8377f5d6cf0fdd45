"""Choice of the replica for a call."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.serve._private.common import RequestMetadata
from ray.serve._private.request_router.common import ReplicaQueueLengthCache
from ray.serve.exceptions import BackPressureError
from ray.serve.request_router import PendingRequest

from deployments.engines.prefix_hash import BLOCK, block_hashes, shared_tokens
from deployments.engines.router import PrefixRouter, rank_replicas
from entmtp.decoding.request import Request
from entmtp.settings import SamplingParams

TEXT = list(range(5 * BLOCK))
A: Any = "a"
B: Any = "b"
"""Replicas' ids, for which Serve has a type of its own."""

TOKENS = st.lists(st.integers(0, 3), max_size=4 * BLOCK)


@given(TOKENS, TOKENS)
def test_hashes_say_how_much_two_texts_share(a: list[int], b: list[int]) -> None:
    same = next((at for at, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    assert shared_tokens(block_hashes(a, ""), frozenset(block_hashes(b, ""))) == same // BLOCK * BLOCK


def test_a_block_counts_only_behind_the_same_beginning() -> None:
    moved = [7, *TEXT]
    assert shared_tokens(block_hashes(moved[1:], "key"), frozenset(block_hashes(TEXT, "key"))) == len(TEXT)
    assert shared_tokens(block_hashes(moved, "key"), frozenset(block_hashes(TEXT, "key"))) == 0
    assert shared_tokens(block_hashes(TEXT, "other"), frozenset(block_hashes(TEXT, "key"))) == 0


@given(st.lists(st.tuples(st.integers(0, 9000), st.integers(0, 500)), min_size=1, max_size=6), st.integers(0, 4000))
def test_the_longest_prefix_wins_among_those_that_have_time(replicas: list[tuple[int, int]], imbalance: int) -> None:
    loads, shared = [load for load, _ in replicas], [tokens for _, tokens in replicas]
    order = rank_replicas(loads, shared, imbalance)
    assert sorted(order) == list(range(len(replicas)))
    fit = [at for at in range(len(replicas)) if loads[at] <= min(loads) + imbalance]
    assert shared[order[0]] == max(shared[at] for at in fit)
    assert loads[order[0]] == min(loads[at] for at in fit if shared[at] == shared[order[0]])


class _Running:
    """A request that runs until it is done."""

    def add_done_callback(self, callback: Any) -> None:
        self.done = callback


def routed() -> Any:
    return _Running()


def replica(name: str, **stats: Any) -> Any:
    return SimpleNamespace(replica_id=name, routing_stats=stats, max_ongoing_requests=4)


def pending(prompt: list[int], tokens: int = 100) -> Any:
    return requested(Request("r", prompt, SamplingParams(max_tokens=tokens)))


def requested(*args: Any) -> PendingRequest:
    metadata = RequestMetadata(request_id="r", internal_request_id="r")
    return PendingRequest(args=list(args), kwargs={}, metadata=metadata)


def router() -> PrefixRouter:
    made = PrefixRouter.__new__(PrefixRouter)
    made.initialize_state(imbalance_tokens=1000, queue_seconds=60.0)
    made._replica_queue_len_cache = ReplicaQueueLengthCache()
    return made


async def first(made: PrefixRouter, replicas: list[Any], request: Any) -> str:
    ranks = await made.choose_replicas(replicas, request)
    assert {str(one.replica_id) for rank in ranks for one in rank} == {str(one.replica_id) for one in replicas}
    return str(ranks[0][0].replica_id)


def test_a_second_turn_goes_where_the_first_went() -> None:
    async def scene() -> None:
        made = router()
        replicas = [replica("a"), replica("b")]
        made.on_request_routed(pending(TEXT), B, routed())
        assert await first(made, replicas, pending([*TEXT, 1, 2])) == "b"
        assert await first(made, replicas, pending([9, *TEXT])) == "a"

    asyncio.run(scene())


def test_what_replicas_tell_counts_where_another_ingress_sent_the_text() -> None:
    async def scene() -> None:
        cached = replica("b", at=1.0, outstanding_tokens=0, prefixes=block_hashes(TEXT, ""))
        assert await first(router(), [replica("a"), cached], pending(TEXT)) == "b"

    asyncio.run(scene())


def test_an_overloaded_replica_is_passed_over_until_it_has_time() -> None:
    async def scene() -> None:
        made = router()
        replicas = [replica("a"), replica("b")]
        running = routed()
        made.on_request_routed(pending(TEXT, tokens=5000), B, running)
        assert await first(made, replicas, pending(TEXT)) == "a"
        running.done(None)
        await asyncio.sleep(0)
        assert await first(made, replicas, pending(TEXT)) == "b"

    asyncio.run(scene())


def test_other_calls_than_those_for_text_go_anywhere() -> None:
    async def scene() -> None:
        made = router()
        assert await first(made, [replica("a")], requested()) == "a"
        assert await made.choose_replicas([], None) == []

    asyncio.run(scene())


def test_a_call_waits_for_room_as_long_as_it_may_and_asks_with_pauses() -> None:
    async def scene() -> None:
        made = router()
        made.replica_queue_len_cache.update(A, 4)
        call = pending(TEXT)
        await first(made, [replica("a")], call)
        assert call.routing_context.should_backoff
        assert not call.future.done()
        call.created_at -= 61.0
        await first(made, [replica("a")], call)
        with pytest.raises(BackPressureError):
            await call.future

    asyncio.run(scene())


@pytest.mark.parametrize("reported", [None, 3])
def test_a_call_waits_for_replicas_that_do_not_say_that_they_are_full(reported: int | None) -> None:
    async def scene() -> None:
        made = router()
        if reported is not None:
            made.replica_queue_len_cache.update(A, reported)
        call = pending(TEXT)
        call.created_at -= 61.0
        await first(made, [replica("a"), replica("b")], call)
        assert not call.future.done()

    asyncio.run(scene())


def test_the_start_of_the_first_replica_is_no_waiting_for_room() -> None:
    async def scene() -> None:
        made = router()
        made.replica_queue_len_cache.update(A, 4)
        made._replicas_since = time.time()
        call = pending(TEXT)
        call.created_at -= 61.0
        await first(made, [replica("a")], call)
        assert not call.future.done()

    asyncio.run(scene())
