"""Requests that bound their own trees, with real heads of every kind: what is drafted for them, and what is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from entmtp.decoding.engine import Engine
from entmtp.decoding.outputs import Completion
from entmtp.decoding.request import Request
from entmtp.heads.autoregressive.drafter import AutoregressiveDrafter
from entmtp.heads.autoregressive.expansion import GuessedLevel
from entmtp.heads.base import DraftHeads
from entmtp.methods import DFLASH, EAGLE3
from entmtp.models.backbone import Backbone
from entmtp.models.build import build_backbone
from entmtp.policies.base import Policy
from entmtp.policies.dynamic import DynamicPolicy
from entmtp.policies.eagle2 import Eagle2Policy
from entmtp.policies.goodput import GoodputPolicy
from entmtp.policies.ladder import BankLadderPolicy
from entmtp.policies.policy_cost import FixedCost
from entmtp.policies.static import StaticPolicy
from entmtp.settings import EngineSettings, SamplingParams
from tests.helpers.heads_with_caches import (
    DRAFT_CACHE_KINDS,
    DSPARK,
    PREFIX,
    check_draft_cache,
    draft_cache_heads,
    draft_cache_model,
)
from tests.helpers.small_cases import (
    small_backbone,
    small_bank,
    small_chances,
    small_cost,
    small_heads,
    small_predictor,
    small_prompt,
)
from tests.helpers.tiny_models import CONTEXT, TREES, greedy

CACHED = DRAFT_CACHE_KINDS[0], EAGLE3, PREFIX, DFLASH, DSPARK
"""Native heads of one type, and every other kind of heads with a draft cache."""
KINDS = ("medusa", "hydra", *CACHED)

CHEAP = small_cost(1e-3, 1e-3)
POLICIES: dict[str, Callable[[], Policy]] = {
    "static": lambda: StaticPolicy(TREES["bushy"], 8),
    "ladder": lambda: BankLadderPolicy(small_bank(), FixedCost(lambda batch, context: CHEAP), 0.05),
    "goodput": lambda: GoodputPolicy(small_predictor(), FixedCost(lambda batch, context: CHEAP), 8),
    "dynamic": lambda: DynamicPolicy(small_predictor(), small_chances(), FixedCost(lambda batch, context: CHEAP), 8),
    "eagle2": lambda: Eagle2Policy(8),
}
NEW_TOKENS = 16
PROMPTS = [small_prompt(7, seed=1), small_prompt(5, seed=2)]


@pytest.fixture(scope="module", params=KINDS)
def heads(request: pytest.FixtureRequest) -> tuple[Backbone, DraftHeads]:
    kind = str(request.param)
    if kind in DRAFT_CACHE_KINDS:
        backbone: Backbone = build_backbone(draft_cache_model(kind), kernels="eager")
        return backbone, draft_cache_heads(kind, backbone)
    backbone = small_backbone()
    return backbone, small_heads(kind, backbone)


class Spy:
    """Records the number of states whose likeliest tokens are drafted, in each call of the heads."""

    def __init__(self, heads: DraftHeads, monkeypatch: pytest.MonkeyPatch) -> None:
        self.batch_sizes: list[int] = []
        real = heads.likeliest

        def likeliest(logits: torch.Tensor, count: int) -> Any:
            self.batch_sizes.append(len(logits))
            return real(logits, count)

        monkeypatch.setattr(heads, "likeliest", likeliest)


def served(engine: Engine, *limits: int | None) -> list[Completion]:
    """The answers to the first prompts, in one batch, each with its limit."""
    params = SamplingParams(temperature=0.0, max_tokens=NEW_TOKENS)
    done = [engine.submit(Request(str(at), PROMPTS[at], params, max_nodes=limit)) for at, limit in enumerate(limits)]
    while not engine.idle:
        engine.step()
    return done


def engine_of(backbone: Backbone, heads: DraftHeads, policy: str) -> Engine:
    return Engine(backbone, heads, POLICIES[policy](), EngineSettings(slots=2, context=CONTEXT))


@pytest.mark.parametrize("policy", list(POLICIES))
def test_the_heads_are_not_run_for_requests_that_may_have_no_tree(
    heads: tuple[Backbone, DraftHeads], policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spy = Spy(heads[1], monkeypatch)
    for limits in ((0,), (0, 0)):
        for done in served(engine_of(*heads, policy), *limits):
            assert len(done.steps) == NEW_TOKENS
    assert spy.batch_sizes == []


def test_in_a_batch_a_request_that_may_have_no_tree_is_not_guessed_for(
    heads: tuple[Backbone, DraftHeads], monkeypatch: pytest.MonkeyPatch
) -> None:
    spy = Spy(heads[1], monkeypatch)
    served(engine_of(*heads, "static"), None)
    alone = set(spy.batch_sizes)
    spy.batch_sizes.clear()
    plain, free = served(engine_of(*heads, "static"), 0, None)
    assert {step.topology.nodes for step in plain.steps} == {0}
    assert {step.topology for step in free.steps} == {TREES["bushy"]}
    assert set(spy.batch_sizes) == alone


def test_native_layers_run_on_the_guesses_of_drafting_requests_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = build_backbone(draft_cache_model(DRAFT_CACHE_KINDS[0]), kernels="eager")
    real = AutoregressiveDrafter.guess_level
    batches: list[int] = []

    def guess_level(drafter: AutoregressiveDrafter, level: GuessedLevel, count: int) -> Any:
        batches.append(len(level.roots.slots))
        return real(drafter, level, count)

    monkeypatch.setattr(AutoregressiveDrafter, "guess_level", guess_level)
    served(engine_of(backbone, draft_cache_heads(DRAFT_CACHE_KINDS[0], backbone), "static"), 0, None)
    assert set(batches) == {1}


@pytest.mark.parametrize("limits", [(0, None), (1, 3), (0, 0), (2, None)])
@pytest.mark.parametrize("policy", list(POLICIES))
def test_limits_hold_and_the_text_is_the_models_own(
    heads: tuple[Backbone, DraftHeads], policy: str, limits: tuple[int | None, int | None]
) -> None:
    for done, prompt, limit in zip(served(engine_of(*heads, policy), *limits), PROMPTS, limits, strict=True):
        assert done.tokens == greedy(heads[0].model, prompt, NEW_TOKENS)
        assert all(limit is None or step.topology.nodes <= limit for step in done.steps)


@pytest.mark.parametrize("kind", CACHED)
def test_a_draft_cache_stays_right_where_nothing_is_drafted(kind: str) -> None:
    """Another request may begin with the text, and have trees."""
    backbone = build_backbone(draft_cache_model(kind), kernels="eager")
    engine = engine_of(backbone, draft_cache_heads(kind, backbone), "dynamic")
    state = engine.runner.state
    (done,) = served(engine, 0)
    (slot,) = [at for at, length in enumerate(state.cache.lengths) if length]
    text = [*PROMPTS[0], *done.tokens]
    check_draft_cache(state, slot, text[: state.cache.lengths[slot]])
