"""Calls to a running engine, its reconfiguration, and requests that bound their own trees."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from entmtp.decoding.async_engine import AsyncEngine, EngineDeadError
from entmtp.decoding.engine import Engine
from entmtp.decoding.request import Request
from entmtp.errors import EntMTPError
from entmtp.heads.base import DraftHeads
from entmtp.models.backbone import Backbone
from entmtp.policies.base import Policy
from entmtp.policies.dynamic import DynamicPolicy
from entmtp.policies.static import StaticPolicy
from entmtp.settings import EngineSettings, SamplingParams
from entmtp.trees.published import published_tree
from entmtp.trees.topology import Topology
from tests.helpers.small_cases import small_dynamic_policy, small_prompt
from tests.helpers.tiny_models import CONTEXT, TREES, greedy, topologies

GREEDY = SamplingParams(temperature=0.0, max_tokens=20)
SETTINGS = EngineSettings(slots=2, context=CONTEXT, prefill_tokens=7)


def dynamic() -> DynamicPolicy:
    return small_dynamic_policy(1e-3, 1e-3)


def engine_of(backbone: Backbone, heads: DraftHeads, policy: Policy | None = None) -> Engine:
    return Engine(backbone, heads, policy or StaticPolicy(TREES["bushy"], 8), SETTINGS)


@given(topologies(), st.integers(0, 12))
@settings(deadline=None)
def test_the_first_nodes_of_a_tree_are_a_tree(whole: Topology, nodes: int) -> None:
    part = whole.truncated(nodes)
    assert part.nodes == min(nodes, whole.nodes)
    assert set(part.paths) <= set(whole.paths)


def test_the_first_nodes_are_those_guessed_first() -> None:
    assert published_tree().truncated(4).paths == ((0,), (1,), (0, 0), (0, 0, 0))


@pytest.mark.parametrize("nodes", [0, 1, 3])
def test_a_request_bounds_its_own_trees_and_no_others(backbone: Backbone, heads: DraftHeads, nodes: int) -> None:
    for policy in (StaticPolicy(TREES["bushy"], 8), dynamic()):
        engine = engine_of(backbone, heads, policy)
        prompts = [small_prompt(5, seed=1), small_prompt(5, seed=2)]
        bounded = engine.submit(Request("bounded", prompts[0], GREEDY, max_nodes=nodes))
        free = engine.submit(Request("free", prompts[1], GREEDY))
        while not engine.idle:
            engine.step()
        assert max(step.topology.nodes for step in bounded.steps) <= nodes
        assert max(step.topology.nodes for step in free.steps) > 3
        for done, prompt in zip((bounded, free), prompts, strict=True):
            assert done.tokens == greedy(backbone.model, prompt, 20)


def test_another_policy_takes_over_in_the_middle_of_a_text(backbone: Backbone, heads: DraftHeads) -> None:
    engine = engine_of(backbone, heads)
    done = engine.submit(Request("r", small_prompt(5), GREEDY))
    for _ in range(3):
        engine.step()
    engine.reconfigure(dynamic(), SETTINGS.model_copy(update={"prefill_tokens": 3, "prefix_reuse": False}))
    while not engine.idle:
        engine.step()
    assert done.tokens == greedy(backbone.model, small_prompt(5), 20)
    assert engine.settings.prefill_tokens == 3


def test_a_policy_that_is_replaced_saves_what_it_has_learnt(
    backbone: Backbone, heads: DraftHeads, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, closed = engine_of(backbone, heads), list[str]()
    monkeypatch.setattr(engine.policy, "close", lambda: closed.append("closed"))
    engine.reconfigure(dynamic(), SETTINGS)
    assert closed == ["closed"]


@pytest.mark.parametrize("name", ["slots", "context"])
def test_other_memory_needs_another_engine(backbone: Backbone, heads: DraftHeads, name: str) -> None:
    engine = engine_of(backbone, heads)
    before = engine.policy
    with pytest.raises(EntMTPError, match=name):
        engine.reconfigure(dynamic(), SETTINGS.model_copy(update={name: 7}))
    assert engine.policy is before
    assert engine.settings is SETTINGS


def test_what_is_outstanding_goes_down_to_nothing(backbone: Backbone, heads: DraftHeads) -> None:
    engine = engine_of(backbone, heads)
    for at in range(4):
        engine.submit(Request(str(at), small_prompt(5, seed=at), GREEDY))
    assert engine.statistics.outstanding_tokens == 4 * 25
    seen = []
    while not engine.idle:
        engine.step()
        seen.append(engine.statistics.outstanding_tokens)
    assert seen == sorted(seen, reverse=True)
    assert seen[-1] == 0


def test_the_engine_answers_questions_between_steps(backbone: Backbone, heads: DraftHeads) -> None:
    engine = engine_of(backbone, heads)

    async def scene() -> None:
        async with AsyncEngine(lambda: engine) as served:
            assert (await served.call(lambda engine: engine.statistics)).running == 0
            with pytest.raises(ZeroDivisionError):
                await served.call(lambda _: 1 // 0)
            assert served.healthy
            stream = served.generate(Request("r", small_prompt(5), GREEDY))
            await anext(stream)
            texts = await served.call(lambda engine: engine.cached_prefixes)
            assert small_prompt(5) in [text[:5] for _, text in texts]
            await stream.aclose()
        with pytest.raises(EngineDeadError):
            await served.call(lambda engine: engine.statistics)

    asyncio.run(scene())


def test_a_question_to_a_dying_engine_is_answered(backbone: Backbone, heads: DraftHeads) -> None:
    engine = engine_of(backbone, heads)

    async def scene() -> None:
        served = AsyncEngine(lambda: engine)

        def die(_: Engine) -> None:
            raise SystemExit("killed")

        answers = await asyncio.gather(
            served.call(die), served.call(lambda engine: engine.statistics), return_exceptions=True
        )
        assert any(isinstance(answer, EngineDeadError) for answer in answers)
        assert not served.healthy

    asyncio.run(asyncio.wait_for(scene(), 10))
