"""The calls of one request: how many at once, and who waits for room."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

import pytest
from ray.exceptions import RayActorError

from deployments.engines import failover
from deployments.engines.admission import Admission
from deployments.engines.merge_streams import merge_streams
from deployments.protocol.messages import CallStream, Failure
from entmtp.decoding.outputs import RequestOutput
from entmtp.decoding.request import Request
from entmtp.settings import SamplingParams


class Engine:
    """Has ``room``; a call that finds none asks whether to wait."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.running = self.most = self.placing = self.most_placing = self.refused = 0

    async def answer(self, refused: Callable[[], bool]) -> CallStream:
        self.placing += 1
        self.most_placing = max(self.most_placing, self.placing)
        await asyncio.sleep(0)
        while self.running >= self.room:
            self.refused += 1
            if not refused():
                self.placing -= 1
                yield Failure("full", "engine")
                return
            await asyncio.sleep(0)
        self.placing -= 1
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            yield RequestOutput("r")
            for _ in range(200):
                await asyncio.sleep(0)
            yield RequestOutput("r", [1], "a", finish_reason="stop")
        finally:
            self.running -= 1


def answers(engine: Engine, calls: int, most: int) -> list[tuple[int, RequestOutput | Failure]]:
    async def scene() -> list[tuple[int, RequestOutput | Failure]]:
        admission = Admission(most)
        streams = [admission.stream(number, engine.answer) for number in range(calls)]
        return [item async for item in merge_streams(streams)]

    return asyncio.run(asyncio.wait_for(scene(), 10))


@pytest.mark.parametrize(("room", "most"), [(8, 8), (3, 8), (1, 8), (8, 2), (1, 1)])
def test_every_call_is_answered_whatever_the_room(room: int, most: int) -> None:
    engine = Engine(room)
    found = answers(engine, 16, most)
    assert sorted(number for number, _ in found) == list(range(16))
    assert all(isinstance(item, RequestOutput) for _, item in found)
    assert engine.most == min(room, most)
    assert engine.most_placing == 1
    assert engine.running == 0


def test_a_request_is_refused_while_none_of_its_calls_is_taken() -> None:
    engine = Engine(0)
    found = answers(engine, 3, 8)
    assert [item.kind for _, item in found if isinstance(item, Failure)] == ["full"] * 3
    assert engine.refused == 3


def test_a_call_that_is_sent_back_does_not_count_as_taken() -> None:
    async def scene() -> list[bool]:
        admission = Admission(2)
        said: list[bool] = []

        async def sent_back(refused: Callable[[], bool]) -> CallStream:
            yield RequestOutput("r")
            said.append(refused())
            yield Failure("full", "engine")

        async for _ in admission.stream(0, sent_back):
            break
        return said

    assert asyncio.run(scene()) == [False]


def test_a_client_that_goes_takes_all_calls_along() -> None:
    async def scene() -> Engine:
        engine, admission = Engine(2), Admission(2)
        stream = merge_streams([admission.stream(number, engine.answer) for number in range(6)])
        await anext(stream)
        await stream.aclose()
        return engine

    assert asyncio.run(scene()).running == 0


class Replicas:
    """Stands for Serve's handle: the first replica dies of the first call's second token; the other has room later."""

    def __init__(self, refusals: int) -> None:
        self.left = refusals
        self.requested: list[str] = []

    @property
    def generate(self) -> Replicas:
        return self

    def options(self, *, stream: bool) -> Replicas:
        return self

    def remote(self, call: Request) -> Replica:
        self.requested.append(call.id)
        return Replica(self, call.id)


class Replica:
    """One attempt."""

    def __init__(self, all: Replicas, call: str) -> None:
        self._all, self._call = all, call

    def cancel(self) -> None:
        pass

    async def __aiter__(self) -> CallStream:
        await asyncio.sleep(0)
        if self._call == "first.0":
            yield RequestOutput("r")
            yield RequestOutput("r", [1], "a")
            raise RayActorError
        if self._all.left:
            self._all.left -= 1
            yield Failure("full", "engine")
            return
        yield RequestOutput("r")
        yield RequestOutput("r", [1, 2], "ab", finish_reason="length")


def test_a_request_with_text_waits_for_room_when_its_replica_dies(monkeypatch: pytest.MonkeyPatch) -> None:
    async def innocent(error: BaseException) -> bool:
        return False

    monkeypatch.setattr(failover, "died_with_its_node", innocent)
    monkeypatch.setattr(failover, "_PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(failover, "_ROOM_SECONDS", 0.0)
    replicas = Replicas(refusals=20)

    async def scene() -> list[tuple[int, RequestOutput | Failure]]:
        admission, params = Admission(2), SamplingParams(seed=0)
        calls = [
            partial(failover.stream_with_failover, replicas, Request(id, [1], params), 4, 1)
            for id in ("first", "second")
        ]
        streams = [admission.stream(at, call) for at, call in enumerate(calls)]
        return [item async for item in merge_streams(streams)]

    found = asyncio.run(asyncio.wait_for(scene(), 10))
    assert not [item for _, item in found if isinstance(item, Failure)]
    texts = [
        "".join(item.text for at, item in found if at == call and isinstance(item, RequestOutput)) for call in (0, 1)
    ]
    assert texts == ["ab", "ab"]
    assert {"first.1", "second.0"} <= set(replicas.requested)
