"""The heads' estimates of their own acceptance, from traces to the steps of the dynamic policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from entmtp.calibration.build import make_bank
from entmtp.calibration.policy_replay import replay_steps
from entmtp.calibration.rank_trace import rank_trace
from entmtp.decoding.engine import Engine
from entmtp.decoding.request import Request
from entmtp.decoding.state import DecodingState
from entmtp.decoding.timers import Stopwatch
from entmtp.heads.dflash import DFlashHeads
from entmtp.models.backbone import Backbone
from entmtp.models.build import build_backbone
from entmtp.policies.dynamic import DynamicPolicy
from entmtp.policies.policy_cost import FixedCost
from entmtp.policies.step_cost import StepCost
from entmtp.settings import CalibrationSettings, EngineSettings, SamplingParams
from entmtp.trees.bank import TreeBank, load_bank
from entmtp.trees.probability_calibration import ProbabilityCalibration
from entmtp.trees.trace import RankTrace
from tests.helpers.dflash_heads import KNOWING_VOCAB, KNOWN_ODDS, dspark_heads, knowing_dspark
from tests.helpers.heads_with_caches import CLOSE, DRAFT_CACHE_KINDS, DSPARK, draft_cache_heads, draft_cache_model
from tests.helpers.small_cases import (
    drafting,
    provenance,
    single_engine,
    small_backbone,
    small_heads,
    small_predictor,
    small_prompt,
    traced,
)
from tests.helpers.tiny_models import greedy

NEW_TOKENS = 16
COST = StepCost(
    nodes=[0, 63],
    verify_ms=[20.0, 60.0],
    narrow_draft_ms=[1.0, 1.2, 1.4, 1.6, 1.8],
    wide_draft_ms=[1.0, 1.2, 1.4, 1.6, 1.8],
    wide_nodes=63,
    hardware="test",
)
READS: dict[str, dict[str, Any]] = {
    "state and token": {},
    "state": {"confidence_reads_token": False},
    "state, without a bias": {"confidence_reads_token": False, "markov_rank": 0},
}


@pytest.mark.parametrize("reads", READS)
@torch.inference_mode()
def test_a_trace_has_the_estimates_that_replays_and_real_steps_see(reads: str) -> None:
    backbone = build_backbone(draft_cache_model(DSPARK))
    heads = dspark_heads(backbone, **READS[reads])
    prompt, text = small_prompt(5, seed=2), small_prompt(9, seed=3)
    trace = traced(backbone, heads, prompt, text)
    assert trace.estimated_odds is not None
    assert trace.estimated_odds.shape == trace.ranks.shape
    assert trace.estimated_odds.std() > 0.1
    expansion = drafting(backbone, heads, prompt, text)(2)
    parent = 0
    for depth in range(4):  # along the text's own path
        tokens, _ = expansion.next_level([parent], heads.config.vocab_size)
        odds = expansion.estimated_odds()
        assert odds is not None
        torch.testing.assert_close(odds, trace.estimated_odds[2, depth : depth + 1], rtol=0, atol=CLOSE)
        parent = tokens[0].tolist().index(text[3 + depth])
    # A real step after the same tokens, whose root is then the text's token.
    state = DecodingState(backbone, heads, slots=1, capacity=64)
    root, _ = state.prefill(0, [*prompt, *text[:4]])
    own = traced(backbone, heads, prompt, [*text[:4], root, *text[5:]]).estimated_odds
    drafted = state.expand([0], Stopwatch(backbone.device))
    drafted.next_level([0], 2)
    odds = drafted.estimated_odds()
    assert own is not None
    assert odds is not None
    torch.testing.assert_close(odds, own[4, :1], rtol=0, atol=CLOSE)


@torch.inference_mode()
def test_a_batchs_estimates_are_those_of_each_request() -> None:
    backbone = build_backbone(draft_cache_model(DSPARK))
    heads = dspark_heads(backbone)
    state = DecodingState(backbone, heads, slots=2, capacity=64)
    alone = []
    for slot in (0, 1):
        state.prefill(slot, small_prompt(5 + slot, seed=slot))
        single = state.expand([slot], Stopwatch(backbone.device))
        single.next_level([0], 3)
        single.next_level([1, 2], 3)
        alone.append(single.estimated_odds())
    both = state.expand([0, 1], Stopwatch(backbone.device))
    both.next_level([0, 1], 3)
    both.next_level([1, 2, 4, 5], 3)
    odds = both.estimated_odds()
    assert odds is not None
    torch.testing.assert_close(odds, torch.cat([each for each in alone if each is not None]), rtol=0, atol=CLOSE)


@pytest.mark.parametrize("kind", ["medusa", "hydra", *(kind for kind in DRAFT_CACHE_KINDS if kind != DSPARK)])
@torch.inference_mode()
def test_heads_that_estimate_nothing_say_so_everywhere(kind: str) -> None:
    backbone = build_backbone(draft_cache_model(kind)) if kind in DRAFT_CACHE_KINDS else small_backbone()
    heads = draft_cache_heads(kind, backbone) if kind in DRAFT_CACHE_KINDS else small_heads(kind, backbone)
    prompt, text = small_prompt(5), small_prompt(7, seed=1)
    assert not heads.estimates_acceptance
    assert traced(backbone, heads, prompt, text).estimated_odds is None
    state = DecodingState(backbone, heads, slots=1, capacity=64)
    state.prefill(0, prompt)
    for expansion in (drafting(backbone, heads, prompt, text)(1), state.expand([0], Stopwatch(backbone.device))):
        expansion.next_level([0], 2)
        assert expansion.estimated_odds() is None


@dataclass(frozen=True)
class Calibrated:
    """Heads that know after which tokens they are wrong, answers of their model, and the bank of half of these."""

    backbone: Backbone
    heads: DFlashHeads
    prompts: Sequence[Sequence[int]]
    texts: Sequence[Sequence[int]]
    traces: Sequence[RankTrace]
    bank: TreeBank

    def policy(self, chances: ProbabilityCalibration) -> DynamicPolicy:
        """The dynamic policy, which always drafts."""
        predictor = small_predictor().model_copy(update={"centres": [-9.0, -8.0, 0.0]})
        return DynamicPolicy(predictor, chances, FixedCost(lambda batch, context: COST), entropy_window=8)


@pytest.fixture(scope="module")
def calibrated() -> Calibrated:
    backbone, heads = knowing_dspark()
    prompts = [[1, 2, token] for token in range(KNOWING_VOCAB)]
    texts = [greedy(backbone.model, prompt, NEW_TOKENS) for prompt in prompts]
    traces = [traced(backbone, heads, prompt, text) for prompt, text in zip(prompts, texts, strict=True)]
    settings = CalibrationSettings(max_nodes=8)
    bank = make_bank(traces[::2], provenance(heads_kind=heads.kind), settings, lambda tree: 10 + tree.nodes)
    return Calibrated(backbone, heads, prompts, texts, traces, bank)


def test_the_bank_stores_the_coefficients_of_estimates_that_tell(calibrated: Calibrated, tmp_path: Path) -> None:
    calibrated.bank.save(tmp_path / "bank.json")
    chances = load_bank(tmp_path / "bank.json").chances
    assert chances == calibrated.bank.chances
    assert chances.reads_estimates
    losses = chances.held_out
    assert losses is not None
    assert losses.estimated_odds is not None
    assert losses.estimated_odds < 0.8 * min(losses.plain, losses.sharpness)
    assert chances.sharpness is not None
    assert chances.sharpness.estimated_odds is not None
    assert len(chances.sharpness.estimated_odds) == calibrated.heads.num_heads
    assert min(chances.sharpness.estimated_odds) > 0


def test_a_replay_with_estimates_takes_the_steps_of_a_real_run(calibrated: Calibrated) -> None:
    backbone, heads, chances = calibrated.backbone, calibrated.heads, calibrated.bank.chances
    policy = calibrated.policy(chances)
    drafted_after: dict[bool, list[int]] = {True: [], False: []}
    for number in (1, 5, 9):  # texts that the bank was not made from
        prompt, text = calibrated.prompts[number], calibrated.texts[number]
        real = single_engine(backbone, heads, policy).generate(prompt, NEW_TOKENS)
        assert real.tokens == text
        with torch.inference_mode():
            steps = replay_steps(calibrated.traces[number], policy, drafting(backbone, heads, prompt, text))
        assert [(step.position, step.topology) for step in steps] == [
            (step.position, step.topology) for step in real.steps
        ]
        for step in steps:
            drafted_after[text[step.position] % 2 == 0].append(step.topology.max_depth)
    assert min(drafted_after[True]) > max(drafted_after[False]), "deeper trees where the heads estimate to be right"


def test_requests_in_one_batch_write_the_models_own_text(calibrated: Calibrated) -> None:
    policy = calibrated.policy(calibrated.bank.chances)
    engine = Engine(calibrated.backbone, calibrated.heads, policy, EngineSettings(slots=3, context=64))
    params = SamplingParams(temperature=0.0, max_tokens=NEW_TOKENS)
    numbers = (1, 5, 9)
    done = [engine.submit(Request(str(number), calibrated.prompts[number], params)) for number in numbers]
    while not engine.idle:
        engine.step()
    assert [one.tokens for one in done] == [calibrated.texts[number] for number in numbers]
    assert max(one.tau for one in done) > 1.5


def test_the_estimates_of_the_knowing_heads_are_as_they_should_be(calibrated: Calibrated) -> None:
    """Their weights are set by hand; after an even token they estimate to be right, and are."""
    for text, trace in zip(calibrated.texts, calibrated.traces, strict=True):
        assert trace.estimated_odds is not None
        even = torch.tensor(text) % 2 == 0
        expected = torch.where(even, KNOWN_ODDS, -KNOWN_ODDS)
        torch.testing.assert_close(trace.estimated_odds[:, 0], expected, rtol=0, atol=0.01)
        assert torch.equal(trace.ranks[:-1, 0] == 0, even[:-1])


def test_a_long_text_traced_in_parts_has_the_same_estimates(calibrated: Calibrated) -> None:
    text = torch.tensor(small_prompt(200, seed=3))
    heads, backbone = calibrated.heads, calibrated.backbone
    features = backbone.read(text.tolist(), heads.feature_layers).features
    seen = heads.traced_text(features, text, begin=1)
    answer = text[1:]
    trace = rank_trace(heads, answer, seen, torch.zeros(len(answer)))
    assert trace.estimated_odds is not None
    expected = torch.where(answer % 2 == 0, KNOWN_ODDS, -KNOWN_ODDS)
    torch.testing.assert_close(trace.estimated_odds[:, 0], expected, rtol=0, atol=0.01)
