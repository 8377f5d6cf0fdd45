"""The engine under an event loop: many clients, some of which leave."""

from __future__ import annotations

import asyncio
import random
import threading
from typing import Any

import pytest

from entmtp.decoding import scheduler as scheduler_module
from entmtp.decoding.async_engine import AsyncEngine, EngineDeadError
from entmtp.decoding.engine import Engine
from entmtp.decoding.request import Request
from entmtp.errors import EntMTPError
from entmtp.policies.static import StaticPolicy
from entmtp.settings import EngineSettings, SamplingParams
from tests.helpers.small_cases import small_backbone, small_heads, small_prompt
from tests.helpers.tiny_models import CONTEXT, TREES, greedy

PARAMS = SamplingParams(temperature=0.0, max_tokens=30)


@pytest.fixture
def engine() -> Engine:
    backbone = small_backbone()
    settings = EngineSettings(slots=4, context=CONTEXT, max_waiting=100)
    return Engine(backbone, small_heads("hydra", backbone), StaticPolicy(TREES["bushy"], 8), settings)


async def tokens_of(served: AsyncEngine, request: Request, leave_after: int | None = None) -> list[int]:
    tokens: list[int] = []
    stream = served.generate(request)
    async for progress in stream:
        tokens += progress.tokens
        if leave_after is not None and len(tokens) >= leave_after:
            break
    await stream.aclose()
    return tokens


async def until_idle(engine: Engine) -> None:
    for _ in range(500):
        if engine.idle:
            return
        await asyncio.sleep(0.01)


def test_half_of_sixty_four_leave_and_the_others_do_not_notice(engine: Engine) -> None:
    async def scene() -> None:
        rng = random.Random(0)
        leaving = set(rng.sample(range(64), 32))
        prompts = [small_prompt(1 + at % 12, seed=at) for at in range(64)]
        async with AsyncEngine(lambda: engine) as served:
            texts = await asyncio.gather(
                *(
                    tokens_of(served, Request(str(at), prompt, PARAMS), rng.randint(0, 25) if at in leaving else None)
                    for at, prompt in enumerate(prompts)
                )
            )
            await until_idle(engine)
            assert engine.idle
            assert engine.statistics.cache_tokens == 0
            assert not served._mailboxes
        for at, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
            expected = greedy(engine.backbone.model, prompt, 30)
            assert text == (expected[: len(text)] if at in leaving else expected)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(scene())
    assert not [thread for thread in threading.enumerate() if thread.name == "entmtp-engine"]


def test_a_task_that_is_cancelled_frees_its_slot(engine: Engine) -> None:
    async def scene() -> None:
        async with AsyncEngine(lambda: engine) as served:
            task = asyncio.create_task(tokens_of(served, Request("gone", small_prompt(3), PARAMS)))
            await asyncio.sleep(0.02)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await until_idle(engine)
            assert engine.idle

    asyncio.run(scene())


def test_the_event_loop_goes_on_while_the_model_works(engine: Engine) -> None:
    async def scene() -> int:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0)

        async with AsyncEngine(lambda: engine) as served:
            ticking = asyncio.create_task(tick())
            await tokens_of(served, Request("one", small_prompt(3), PARAMS))
            ticking.cancel()
        return ticks

    assert asyncio.run(scene()) > 30


def test_a_bad_request_fails_alone(engine: Engine) -> None:
    async def scene() -> None:
        async with AsyncEngine(lambda: engine) as served:
            good = asyncio.create_task(tokens_of(served, Request("good", small_prompt(3), PARAMS)))
            with pytest.raises(EntMTPError, match=r"^prompt: "):
                await tokens_of(served, Request("bad", [], PARAMS))
            assert await good == greedy(engine.backbone.model, small_prompt(3), 30)
            assert served.healthy

    asyncio.run(scene())


@pytest.mark.parametrize(("owner", "name"), [(Engine, "submit"), (scheduler_module, "make_output")])
def test_a_request_that_the_engine_stumbles_over_fails_alone(
    owner: Any, name: str, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = getattr(owner, name)

    def stumbling(*arguments: Any) -> Any:
        request = arguments[-1] if isinstance(arguments[-1], Request) else arguments[-1].request
        if request.id == "bad":
            raise Exception("Invalid prefix encountered")
        return real(*arguments)

    monkeypatch.setattr(owner, name, stumbling)

    async def scene() -> None:
        async with AsyncEngine(lambda: engine) as served:
            good = asyncio.create_task(tokens_of(served, Request("good", small_prompt(3), PARAMS)))
            with pytest.raises(EntMTPError, match="failed"):
                await tokens_of(served, Request("bad", small_prompt(4), PARAMS))
            assert await good == greedy(engine.backbone.model, small_prompt(3), 30)
            assert served.healthy

    asyncio.run(scene())


def test_one_name_is_for_one_request_at_a_time(engine: Engine) -> None:
    async def scene() -> None:
        async with AsyncEngine(lambda: engine) as served:
            first = asyncio.create_task(tokens_of(served, Request("same", small_prompt(3), PARAMS)))
            await asyncio.sleep(0)
            with pytest.raises(EntMTPError, match="'same' is taken"):
                await tokens_of(served, Request("same", small_prompt(3), PARAMS))
            await first
            assert len(await tokens_of(served, Request("same", small_prompt(3), PARAMS))) == 30

    asyncio.run(scene())


def test_a_dead_loop_is_seen_and_reported_to_all(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise RuntimeError("the device is gone")

    async def scene() -> None:
        served = AsyncEngine(lambda: engine)
        monkeypatch.setattr(engine, "step", broken)
        with pytest.raises(EngineDeadError, match="the device is gone"):
            await asyncio.wait_for(tokens_of(served, Request("one", small_prompt(3), PARAMS)), 5)
        served._thread.join(5)
        assert not served.healthy
        with pytest.raises(EngineDeadError, match="start it anew"):
            await asyncio.wait_for(tokens_of(served, Request("two", small_prompt(3), PARAMS)), 5)

    asyncio.run(scene())


@pytest.mark.parametrize("broken", [False, True])
def test_closing_saves_what_was_learnt(engine: Engine, monkeypatch: pytest.MonkeyPatch, *, broken: bool) -> None:
    closed_in: list[str] = []

    def close() -> None:
        closed_in.append(threading.current_thread().name)
        if broken:
            raise OSError("the disk is gone")

    monkeypatch.setattr(engine.policy, "close", close)
    AsyncEngine(lambda: engine).close()
    assert closed_in == ["entmtp-engine"]


def test_closing_tells_those_who_still_wait(engine: Engine) -> None:
    async def scene() -> None:
        served = AsyncEngine(lambda: engine)
        task = asyncio.create_task(tokens_of(served, Request("one", small_prompt(3), PARAMS)))
        await asyncio.sleep(0)
        await asyncio.to_thread(served.close)
        with pytest.raises(EngineDeadError, match="closed"):
            await asyncio.wait_for(task, 5)

    asyncio.run(scene())


def test_an_engine_that_cannot_be_made_says_why_and_leaves_no_thread() -> None:
    def make() -> Engine:
        raise EntMTPError("model: it is nowhere")

    with pytest.raises(EntMTPError, match="nowhere"):
        AsyncEngine(make)
    for thread in threading.enumerate():
        if thread.name == "entmtp-engine":
            thread.join(10)
            assert not thread.is_alive()


def test_an_engine_is_made_where_it_runs() -> None:
    threads: list[str] = []

    def make() -> Engine:
        threads.append(threading.current_thread().name)
        backbone = small_backbone()
        return Engine(backbone, None, StaticPolicy(TREES["root"], 8), EngineSettings(slots=1, context=CONTEXT))

    served = AsyncEngine(make)
    served.close()
    assert threads == ["entmtp-engine"]
