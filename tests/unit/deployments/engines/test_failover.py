"""Calls outlive replicas: another one writes the same answer, and the client sees one text."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from grpc import StatusCode
from grpc.aio import AioRpcError, Metadata
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.exceptions import RayActorError
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError

from deployments.engines import failover
from deployments.engines.failover import stream_with_failover
from deployments.protocol.messages import CallStream, Failure
from entmtp.decoding.outputs import PromptLogprobs, RequestOutput
from entmtp.decoding.request import Request
from entmtp.settings import SamplingParams

Item = RequestOutput | Failure | Exception
ACCEPTED = RequestOutput("r")
TOKENS = list(range(100, 112))
CALL = Request("r", [1, 2], SamplingParams(seed=0))


class NodeDiedError(RayActorError):
    """Serve's error for a replica whose node the cluster knows to be gone."""


@pytest.fixture(autouse=True)
def _known_world(monkeypatch: pytest.MonkeyPatch) -> None:
    async def known(error: BaseException) -> bool:
        return isinstance(error, NodeDiedError)

    monkeypatch.setattr(failover, "died_with_its_node", known)
    monkeypatch.setattr(failover, "_PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(failover, "_ROOM_SECONDS", 0.0)


class Response:
    """Fake of a Serve handle's response: a stream that can be cancelled."""

    def __init__(self, items: Sequence[Item]) -> None:
        self.items = items
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True

    async def __aiter__(self) -> CallStream:
        for item in self.items:
            if isinstance(item, Exception):
                raise item
            yield item


class Handle:
    """An engine whose attempts yield what is given."""

    def __init__(self, *attempts: Sequence[Item]) -> None:
        self.responses = [Response(items) for items in attempts]
        self.calls: list[Request] = []

    @property
    def generate(self) -> Handle:
        return self

    def options(self, *, stream: bool) -> Handle:
        assert stream
        return self

    def remote(self, call: Request) -> Response:
        self.calls.append(call)
        return self.responses[len(self.calls) - 1]


def cut(tokens: Sequence[int], sizes: Sequence[int], index: int = 0) -> list[Item]:
    """A stream of these tokens in parts; every token's text is a letter, and comes one part late."""
    parts: list[Item] = []
    at, late = 0, ""
    for size in sizes:
        part = list(tokens[at : at + size])
        at += len(part)
        ends = at >= len(tokens)
        text = "".join(chr(97 + token - 100) for token in part)
        given, late = (late + text, "") if ends else (late, text)
        parts.append(RequestOutput("r", part, given, finish_reason="length" if ends else None))
        if ends:
            break
    return parts


def collected(handle: Handle, attempts: int = 4, **options: Any) -> list[RequestOutput | Failure]:
    async def scene() -> list[RequestOutput | Failure]:
        items = [item async for item in stream_with_failover(handle, CALL, attempts, **options)]
        return [item for item in items if isinstance(item, Failure) or not item.is_empty]

    return asyncio.run(scene())


def dead() -> Exception:
    return RayActorError()


SIZES = st.lists(st.integers(0, 4), min_size=12, max_size=20).map(lambda sizes: [*sizes, 12])


def one_text(found: Sequence[RequestOutput | Failure]) -> bool:
    deltas = [item for item in found if isinstance(item, RequestOutput)]
    return (
        [token for item in deltas for token in item.tokens] == TOKENS
        and "".join(item.text for item in deltas) == "abcdefghijkl"
        and [item.finish_reason for item in deltas][-1] == "length"
        and len(deltas) == len(found)
    )


@settings(deadline=None)
@given(st.lists(SIZES, min_size=1, max_size=4), st.data())
def test_one_text_comes_of_many_attempts(attempts: list[list[int]], data: Any) -> None:
    """Nodes may go one after another."""
    streams: list[list[Item]] = []
    for sizes in attempts[:-1]:
        whole = cut(TOKENS, sizes)
        streams.append([*whole[: data.draw(st.integers(0, len(whole) - 1))], NodeDiedError()])
    streams.append(list(cut(TOKENS, attempts[-1])))
    assert one_text(collected(Handle(*streams)))


@settings(deadline=None)
@given(SIZES, SIZES, st.data())
def test_one_death_harms_no_call(first: list[int], second: list[int], data: Any) -> None:
    whole = cut(TOKENS, first)
    seen = whole[: data.draw(st.integers(0, len(whole) - 1))]
    end = data.draw(st.sampled_from([[dead()], [Failure("dead", "loop")], []]))
    assert one_text(collected(Handle([ACCEPTED, *seen, *end], [ACCEPTED, *cut(TOKENS, second)])))


@pytest.mark.parametrize("positions", [(0, 0), (3, 3), (2, 9)])
def test_a_call_that_ends_its_replicas_ends_two(positions: tuple[int, int]) -> None:
    handle = Handle(*[[ACCEPTED, *cut(TOKENS, [1] * 12)[:position], dead()] for position in (*positions, 0, 0)])
    failure = collected(handle)[-1]
    assert isinstance(failure, Failure)
    assert failure.kind == "fatal"
    assert "not tried again" in failure.message
    assert len(handle.calls) == 2


def test_a_request_that_has_seen_a_death_elsewhere_ends_one_replica() -> None:
    handle = Handle([dead()], cut(TOKENS, [12]))
    (failure,) = collected(handle, retries=0)
    assert isinstance(failure, Failure)
    assert failure.kind == "fatal"
    assert len(handle.calls) == 1


def test_a_death_with_a_node_leaves_the_second_chance() -> None:
    assert one_text(collected(Handle([NodeDiedError()], [dead()], [NodeDiedError()], cut(TOKENS, [12]))))
    handle = Handle([NodeDiedError()], [dead()], [dead()], cut(TOKENS, [12]))
    assert isinstance(collected(handle)[-1], Failure)
    assert len(handle.calls) == 3


def test_a_replica_that_never_took_the_call_proves_nothing() -> None:
    gone = Failure("unavailable", "loop")
    assert one_text(collected(Handle([gone], [gone], [dead()], cut(TOKENS, [12]))))
    assert one_text(collected(Handle([ReplicaUnavailableError("r")], [dead()], cut(TOKENS, [12]))))


@pytest.mark.parametrize("full", [BackPressureError(1, 1), Failure("full", "engine"), Failure("late", "call")])
def test_a_call_that_lost_its_replica_waits_for_room_on_another(full: Item) -> None:
    assert one_text(collected(Handle([ACCEPTED, dead()], *[[full] for _ in range(9)], cut(TOKENS, [12]))))


def test_a_call_waits_for_room_where_its_request_has_been_taken() -> None:
    said = iter([True, True, False])
    handle = Handle(*[[Failure("full", "engine")] for _ in range(4)])
    (failure,) = collected(handle, waits_for_room=lambda: next(said))
    assert isinstance(failure, Failure)
    assert failure.kind == "full"
    assert len(handle.calls) == 3


def test_scores_of_the_prompt_come_once_however_often_it_is_read() -> None:
    scores = [PromptLogprobs(-1.0, [], 1)]
    first = RequestOutput("r", TOKENS[:1], "", prompt_logprobs=scores)
    whole = RequestOutput("r", TOKENS, "abcdefghijkl", prompt_logprobs=scores, finish_reason="length")
    found = collected(Handle([first, dead()], [whole]))
    outputs = [item for item in found if isinstance(item, RequestOutput)]
    assert [item.prompt_logprobs for item in outputs] == [scores, []]
    assert one_text(found)


def test_a_refusal_tells_when_to_try_again() -> None:
    (failure,) = collected(Handle([Failure("full", "engine", 17)]))
    assert failure == Failure("full", "engine", 17)


def test_another_text_is_an_error_and_not_a_mixture() -> None:
    found = collected(Handle([*cut(TOKENS, [3, 12])[:1], dead()], cut([7, 8, 9], [3])))
    assert isinstance(found[-1], Failure)
    assert found[-1].kind == "dead"
    assert "rounding can bring about in 16 bits" in found[-1].message
    assert [item.tokens for item in found[:-1] if isinstance(item, RequestOutput)] == [TOKENS[:3]]


@pytest.mark.parametrize(
    ("end", "kind", "tries"),
    [
        (lambda: Failure("invalid", "prompt: no"), "invalid", 1),
        (lambda: Failure("full", "later"), "full", 1),
        (lambda: Failure("late", "later"), "late", 1),
        (lambda: Failure("failed", "nan"), "failed", 1),
        (lambda: Failure("unavailable", "loop"), "dead", 3),
        (lambda: Failure("dead", "loop"), "fatal", 2),
        (dead, "fatal", 2),
        (lambda: AioRpcError(StatusCode.INTERNAL, Metadata(), Metadata()), "fatal", 2),
        (NodeDiedError, "dead", 3),
        (lambda: BackPressureError(num_queued_requests=1, max_queued_requests=1), "full", 1),
        (lambda: DeploymentUnavailableError(DeploymentID("engine")), "dead", 1),
    ],
)
def test_what_ends_a_call(end: Callable[[], Item], kind: str, tries: int) -> None:
    handle = Handle(*[[end()] for _ in range(3)])
    (failure,) = collected(handle, attempts=3)
    assert isinstance(failure, Failure)
    assert failure.kind == kind
    assert len(handle.calls) == tries
    assert len({call.id for call in handle.calls}) == tries
    assert all(response.cancelled for response in handle.responses[:tries])


def test_a_stream_that_ends_too_soon_is_tried_again() -> None:
    found = collected(Handle(cut(TOKENS, [3, 12])[:1], cut(TOKENS, [12])))
    assert [token for item in found if isinstance(item, RequestOutput) for token in item.tokens] == TOKENS


@pytest.mark.parametrize("sizes", [[12], [5, 7]])
def test_a_replica_that_dies_after_the_last_token_changes_nothing(sizes: list[int]) -> None:
    found = collected(Handle([ACCEPTED, *cut(TOKENS, [12]), dead()], [ACCEPTED, *cut(TOKENS, sizes)]))
    assert one_text(found)
    assert len(found) == 1  # the end is not sent again


def test_a_client_that_goes_is_told_to_the_replica() -> None:
    handle = Handle(cut(TOKENS, [1] * 12))

    async def scene() -> None:
        stream = stream_with_failover(handle, CALL, 4)
        await anext(stream)
        await stream.aclose()

    asyncio.run(scene())
    assert handle.responses[0].cancelled
