"""The engine under an event loop: many clients, some of which leave."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Sequence
from typing import Any

import pytest

from entmtp.decoding import async_engine
from entmtp.decoding import scheduler as scheduler_module
from entmtp.decoding.async_engine import AsyncEngine, EngineDeadError
from entmtp.decoding.engine import Engine
from entmtp.decoding.grammars.compiler import Grammar, GrammarCompiler
from entmtp.decoding.grammars.constraint import Constraint
from entmtp.decoding.request import InvalidRequestError, Request
from entmtp.errors import EntMTPError
from entmtp.policies.static import StaticPolicy
from entmtp.settings import EngineSettings, SamplingParams
from entmtp.structured import Structured
from tests.helpers.constrained_texts import engine_of as constrained_engine
from tests.helpers.constrained_texts import params_of
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

    def stumbling(*arguments: Any, **named: Any) -> Any:
        request = arguments[-1] if isinstance(arguments[-1], Request) else arguments[-1].request
        if request.id == "bad":
            raise Exception("Invalid prefix encountered")
        return real(*arguments, **named)

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


class SlowCompilation:
    """Compilations of one constraint wait until they may end."""

    constraint = Structured(regex="a{3}")

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.may_end = threading.Event()
        own = GrammarCompiler.compile

        def compile_slowly(compiler: GrammarCompiler, structured: Structured) -> Grammar:
            if structured == self.constraint:
                assert self.may_end.wait(600)
            return own(compiler, structured)

        monkeypatch.setattr(GrammarCompiler, "compile", compile_slowly)


def test_a_slow_compilation_delays_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = SlowCompilation(monkeypatch)
    monkeypatch.setattr(async_engine, "COMPILE_SECONDS", 600)

    async def scene() -> None:
        async with AsyncEngine(lambda: constrained_engine("static")) as served:
            waiting = asyncio.create_task(tokens_of(served, Request("slow", [1, 2], params_of(slow.constraint))))
            free = await tokens_of(served, Request("free", [1, 2], params_of(None, max_tokens=30)))
            assert len(free) == 30
            assert await tokens_of(served, Request("quick", [1, 2], params_of(Structured(regex="ab"))))
            assert not waiting.done()
            slow.may_end.set()
            assert await waiting

    asyncio.run(scene())


def test_a_slow_compilation_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = SlowCompilation(monkeypatch)
    monkeypatch.setattr(async_engine, "COMPILE_SECONDS", 0.01)

    async def scene() -> None:
        async with AsyncEngine(lambda: constrained_engine("static")) as served:
            with pytest.raises(InvalidRequestError, match=r"structured: it is not compiled within 0.01 s; simplify it"):
                await tokens_of(served, Request("slow", [1, 2], params_of(slow.constraint)))
            slow.may_end.set()

    asyncio.run(scene())


def test_a_malformed_constraint_is_refused_before_it_is_queued() -> None:
    async def scene() -> None:
        async with AsyncEngine(lambda: constrained_engine("static")) as served:
            params = params_of(Structured(regex="(", field_name="guided_regex"))
            with pytest.raises(InvalidRequestError, match=r"guided_regex: this regex is not accepted"):
                await tokens_of(served, Request("a", [1, 2], params))
            assert served.healthy

    asyncio.run(scene())


def test_a_constraint_that_fails_later_is_the_requests_own_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Constraint, tokens: Sequence[int]) -> None:
        raise InvalidRequestError("guided_regex: it became too complex")

    async def scene() -> None:
        async with AsyncEngine(lambda: constrained_engine("static")) as served:
            with pytest.raises(InvalidRequestError, match=r"guided_regex: it became too complex"):
                await tokens_of(served, Request("a", [1, 2], params_of(Structured(regex="[ab]{9}"))))

    monkeypatch.setattr(Constraint, "advance", broken)
    asyncio.run(scene())
