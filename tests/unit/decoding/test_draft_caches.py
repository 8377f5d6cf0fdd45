"""Heads that attend to earlier text, in the loop: whatever they guess, the text is the model's own."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

from entmtp.decoding.engine import Engine
from entmtp.decoding.graphs import Graphs
from entmtp.decoding.outputs import Completion
from entmtp.decoding.request import Request
from entmtp.heads.base import DraftHeads
from entmtp.methods import EAGLE3
from entmtp.models.backbone import Backbone
from entmtp.models.build import build_backbone
from entmtp.policies.base import Policy
from entmtp.policies.dynamic import DynamicPolicy
from entmtp.policies.eagle2 import Eagle2Policy
from entmtp.policies.ladder import Ladder, LadderPolicy
from entmtp.policies.policy_cost import FixedCost
from entmtp.policies.static import SequencePolicy, StaticPolicy
from entmtp.settings import EngineSettings, SamplingParams
from entmtp.trees.topology import Path, Topology
from tests.helpers.arrivals import come_and_go
from tests.helpers.dflash_heads import sure_dspark
from tests.helpers.eagle3_heads import sure_eagle3
from tests.helpers.examples import examples
from tests.helpers.heads_with_caches import (
    DRAFT_CACHE_KINDS,
    DSPARK,
    check_draft_cache,
    draft_cache_heads,
    draft_cache_model,
)
from tests.helpers.native_models import mtp_model, native_heads, sure_heads
from tests.helpers.small_cases import single_engine, small_chances, small_cost, small_predictor, small_prompt
from tests.helpers.small_fixtures import backbone_of_model
from tests.helpers.taped_graphs import Taped
from tests.helpers.tiny_models import CONTEXT, TREES, greedy

__all__ = ["backbone_of_model"]

_WIDE = [(rank,) for rank in range(6)]
WIDE = Topology.of([*_WIDE, *((rank, child) for rank in range(4) for child in range(4)), (0, 0, 0), (0, 0, 0, 0)])
"""Over twelve tokens, half of which it guesses, so that random layers are right now and then, and twice in a row."""

SURE: dict[str, Callable[[PreTrainedModel], tuple[Backbone, DraftHeads]]] = {
    "mellum": sure_heads,
    EAGLE3: sure_eagle3,
    DSPARK: sure_dspark,
}
POLICIES: dict[str, Policy] = {
    "chain": StaticPolicy(TREES["chain"], 8),
    "wide": StaticPolicy(WIDE, 8),
    "ladder": LadderPolicy(Ladder((0.8, 1.6), (WIDE, TREES["wide"], TREES["root"]), 8), 0.05),
    "sequence": SequencePolicy([WIDE, TREES["root"], TREES["root"], TREES["bushy"], TREES["chain"]], 8),
    "dynamic": DynamicPolicy(
        small_predictor(), small_chances(), FixedCost(lambda batch, context: small_cost(0.01, 0.01)), 8
    ),
    "eagle2": Eagle2Policy(8),
}


@pytest.fixture(scope="module", params=DRAFT_CACHE_KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def model(kind: str) -> PreTrainedModel:
    return draft_cache_model(kind)


@pytest.fixture(scope="module")
def heads(kind: str, backbone: Backbone) -> DraftHeads:
    return draft_cache_heads(kind, backbone)


@pytest.mark.parametrize(
    "name",
    [
        *("wide", "sequence", "dynamic", "eagle2"),
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("chain", "ladder")),  # trees as in the sequence
    ],
)
def test_the_output_is_the_models_own_greedy_text(
    name: str, kind: str, model: PreTrainedModel, backbone: Backbone, heads: DraftHeads
) -> None:
    prompt = small_prompt(9)
    done = single_engine(backbone, heads, POLICIES[name]).generate(prompt, 50)
    assert done.tokens == greedy(model, prompt, 50)
    if name in ("wide", "dynamic") or (name, kind) == ("eagle2", EAGLE3):
        assert done.tau > 1.15, "nothing was accepted: the case shows nothing"
        assert any(step.gained > 2 for step in done.steps) or name == "dynamic"


@pytest.mark.parametrize("kind", SURE)
def test_a_layer_that_knows_the_model_is_right_at_every_depth(kind: str) -> None:
    model = draft_cache_model(kind)
    backbone, heads = SURE[kind](model)
    prompt = small_prompt(9)
    length = 12 * (1 + heads.num_heads)
    expected = greedy(model, prompt, length)
    chain = Topology.of([(0,) * depth for depth in range(1, heads.num_heads + 1)])
    done = single_engine(backbone, heads, StaticPolicy(chain, 8)).generate(prompt, length)
    assert done.tokens == expected
    assert done.tau == 1 + heads.num_heads
    expanded = single_engine(backbone, heads, POLICIES["dynamic"]).generate(prompt, length)
    assert expanded.tokens == expected
    assert [step.path for step in expanded.steps] == [likeliest(step.topology) for step in expanded.steps]


def likeliest(topology: Topology) -> tuple[int, ...]:
    """The longest of the tree's paths along the likeliest guesses."""
    return max((path for path in topology.paths if not any(path)), key=len, default=())


@given(st.randoms(use_true_random=False), st.sampled_from(["wide", "sequence", "dynamic", "eagle2"]), st.booleans())
@settings(max_examples=examples(per_hundred=4), suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_requests_that_come_and_go_write_what_each_writes_alone(
    model: PreTrainedModel, backbone: Backbone, heads: DraftHeads, rng: random.Random, policy: str, reuse: bool
) -> None:
    sizes: dict[str, Any] = {"slots": 3, "context": CONTEXT, "prefill_tokens": 7, "prefix_reuse": reuse}
    engine = Engine(backbone, heads, POLICIES[policy], EngineSettings.parse(**sizes))
    shared = small_prompt(8, seed=50)
    prompts = [[*(shared if rng.random() < 0.6 else []), *small_prompt(rng.randint(1, 15), seed=at)] for at in range(6)]
    lengths = [rng.randint(1, 14) for _ in prompts]

    def cancel_now_and_then() -> None:
        if rng.random() < 0.15:
            engine.cancel(str(rng.randrange(6)))  # another prompt may reuse the prefix that it leaves in its slot

    done = come_and_go(engine, prompts, lengths, rng, cancel_now_and_then)
    for at, completion in done.items():
        expected = greedy(model, prompts[at], lengths[at])
        if completion.finish_reason == "cancelled":
            expected = expected[: len(completion.tokens)]
        assert completion.tokens == expected
        if policy != "dynamic":  # which expands the trees of all requests together
            alone = single_engine(backbone, heads, POLICIES[policy]).generate(prompts[at], lengths[at])
            assert _paths(completion) == _paths(alone)[: len(completion.steps)]
    state, slots = engine.runner.state, engine.scheduler.slots
    for slot, (_, text) in zip(
        [at for at, length in enumerate(state.cache.lengths) if length], slots.cached_prefixes, strict=True
    ):
        check_draft_cache(state, slot, text)


def _paths(completion: Completion) -> list[Path]:
    """Accepted path of each step, which shows the states that the heads drafted from."""
    return [step.path for step in completion.steps]


def test_a_prompt_that_is_cancelled_before_it_is_read_leaves_its_cached_prefix(
    backbone: Backbone, heads: DraftHeads
) -> None:
    engine = Engine(backbone, heads, POLICIES["wide"], EngineSettings(slots=2, context=CONTEXT, prefill_tokens=7))
    shared = small_prompt(8, seed=50)

    def submit(id: str, prompt: list[int]) -> Completion:
        return engine.submit(Request(id, prompt, SamplingParams(temperature=0.0, max_tokens=6)))

    def finish() -> None:
        while not engine.idle:
            engine.step()

    submit("earlier", [*shared, *small_prompt(3, seed=1)])
    finish()
    submit("long", small_prompt(15, seed=7))
    cancelled = submit("cancelled", [*shared, *small_prompt(5, seed=3)])
    engine.step()
    engine.cancel("cancelled")
    assert cancelled.reused_tokens == len(shared)
    finish()
    state, slots = engine.runner.state, engine.scheduler.slots
    assert ("", shared) in slots.cached_prefixes
    for slot, (_, text) in enumerate(slots.cached_prefixes):
        check_draft_cache(state, slot, text)
    prompt = [*shared, *small_prompt(4, seed=4)]
    again = submit("again", prompt)
    finish()
    assert again.reused_tokens == len(shared)
    assert _paths(again) == _paths(single_engine(backbone, heads, POLICIES["wide"]).generate(prompt, 6))


def test_a_prompt_that_begins_like_another_reuses_the_draft_cache(
    model: PreTrainedModel, backbone: Backbone, heads: DraftHeads
) -> None:
    engine = Engine(backbone, heads, POLICIES["wide"], EngineSettings(slots=2, context=CONTEXT))
    shared, completions = small_prompt(12, seed=50), []
    for seed in range(3):
        params = SamplingParams(temperature=0.0, max_tokens=20)
        prompt = [*shared, *small_prompt(4, seed=seed)]
        completions.append((prompt, engine.submit(Request(str(seed), prompt, params))))
        while not engine.idle:
            engine.step()
    for prompt, completion in completions:
        assert completion.tokens == greedy(model, prompt, 20)
    assert [completion.reused_tokens >= len(shared) for _, completion in completions] == [False, True, True]


def test_chance_draws_the_text_that_plain_sampling_draws(backbone: Backbone, heads: DraftHeads) -> None:
    params = SamplingParams(temperature=0.8, seed=5, max_tokens=30)
    settings_ = EngineSettings(slots=1, context=CONTEXT)
    texts = []
    for policy in (StaticPolicy(TREES["root"], 8), POLICIES["wide"]):
        engine = Engine(backbone, heads, policy, settings_)
        completion = engine.submit(Request("one", small_prompt(9), params))
        while not engine.idle:
            engine.step()
        texts.append(completion.tokens)
    assert texts[0] == texts[1]


def test_where_parts_are_captured_the_draft_is_not() -> None:
    model = mtp_model("mellum", mlp_layer_types=["dense"] * 2, mtp_mlp_layer_types=["dense"])
    backbone = build_backbone(model, kernels="eager")
    engine = Engine(backbone, native_heads(backbone), POLICIES["sequence"], EngineSettings(slots=1, context=CONTEXT))
    state = engine.runner.state
    state.graphs = Graphs(Taped())
    prompt = small_prompt(9)
    done = engine.generate(prompt, 40)
    assert done.tokens == greedy(model, prompt, 40)
    assert done.accepted
    assert state.graphs.disabled_reason is None
    captured = {key[0] for key in state.graphs._captured if isinstance(key, tuple)}
    assert captured == {"verify", "accept", "compact"}
