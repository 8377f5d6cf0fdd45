"""Calls outlive replicas: another one writes the same answer, and the client sees one text."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

import pytest
from grpc import StatusCode
from grpc.aio import AioRpcError, Metadata
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.exceptions import RayActorError
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from deployments import relay
from deployments.messages import Call, Delta, Failure
from deployments.relay import relayed
from entmtp.settings import SamplingParams

Item = Delta | Failure | Exception
TOKENS = list(range(100, 112))
CALL = Call("r", [1, 2], SamplingParams(seed=0), n=1)


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "_PAUSE_SECONDS", 0.0)


class Response:
    """What Serve's handle returns: a stream that can be cancelled."""

    def __init__(self, items: Sequence[Item]) -> None:
        self.items = items
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True

    async def __aiter__(self) -> AsyncGenerator[Delta | Failure]:
        for item in self.items:
            if isinstance(item, Exception):
                raise item
            yield item


class Handle:
    """An engine whose attempts yield what is given."""

    def __init__(self, *attempts: Sequence[Item]) -> None:
        self.responses = [Response(items) for items in attempts]
        self.calls: list[Call] = []

    @property
    def generate(self) -> Handle:
        return self

    def options(self, *, stream: bool) -> Handle:
        assert stream
        return self

    def remote(self, call: Call) -> Response:
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
        parts.append(Delta(index, part, given, finish_reason="length" if ends else None))
        if ends:
            break
    return parts


def collected(handle: Handle, call: Call = CALL, attempts: int = 4) -> list[Delta | Failure]:
    async def scene() -> list[Delta | Failure]:
        return [item async for item in relayed(handle, call, attempts)]

    return asyncio.run(scene())


def dead() -> Exception:
    return RayActorError()


SIZES = st.lists(st.integers(0, 4), min_size=12, max_size=20).map(lambda sizes: [*sizes, 12])


@settings(deadline=None)
@given(st.lists(SIZES, min_size=1, max_size=4), st.data())
def test_one_text_comes_of_many_attempts(attempts: list[list[int]], data: Any) -> None:
    streams: list[list[Item]] = []
    for sizes in attempts[:-1]:
        whole = cut(TOKENS, sizes)
        streams.append([*whole[: data.draw(st.integers(0, len(whole) - 1))], dead()])
    streams.append(list(cut(TOKENS, attempts[-1])))
    found = collected(Handle(*streams))
    assert [token for item in found if isinstance(item, Delta) for token in item.tokens] == TOKENS
    assert "".join(item.text for item in found if isinstance(item, Delta)) == "abcdefghijkl"
    assert [item.finish_reason for item in found if isinstance(item, Delta)][-1] == "length"
    assert not any(isinstance(item, Failure) for item in found)


def test_answers_of_one_call_are_kept_apart() -> None:
    call = Call("r", [1], SamplingParams(seed=0), n=2)
    first = [cut(TOKENS, [3, 12])[0], *cut(TOKENS, [12], index=1), dead()]
    second = [*cut(TOKENS, [12], index=1), *cut(TOKENS, [5, 12])]
    found = [item for item in collected(Handle(first, second), call) if isinstance(item, Delta)]
    for index in range(2):
        assert [token for item in found if item.index == index for token in item.tokens] == TOKENS
    assert sum(item.finish_reason is not None for item in found) == 2


def test_another_text_is_an_error_and_not_a_mixture() -> None:
    found = collected(Handle([*cut(TOKENS, [3, 12])[:1], dead()], cut([7, 8, 9], [3])))
    assert isinstance(found[-1], Failure)
    assert found[-1].kind == "failed"
    assert [item.tokens for item in found[:-1] if isinstance(item, Delta)] == [TOKENS[:3]]


@pytest.mark.parametrize(
    ("end", "kind", "tries"),
    [
        (lambda: Failure("invalid", "prompt: no"), "invalid", 1),
        (lambda: Failure("full", "later"), "full", 1),
        (lambda: Failure("failed", "nan"), "failed", 1),
        (lambda: Failure("dead", "loop"), "dead", 3),
        (dead, "dead", 3),
        (lambda: AioRpcError(StatusCode.INTERNAL, Metadata(), Metadata()), "dead", 3),
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
    assert [token for item in found if isinstance(item, Delta) for token in item.tokens] == TOKENS


def test_a_client_that_goes_is_told_to_the_replica() -> None:
    handle = Handle(cut(TOKENS, [1] * 12))

    async def scene() -> None:
        stream = relayed(handle, CALL, 4)
        await anext(stream)
        await stream.aclose()

    asyncio.run(scene())
    assert handle.responses[0].cancelled
