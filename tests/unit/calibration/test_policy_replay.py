"""Replay against real decoding, and against known answers."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from entmtp.calibration.policy_replay import replay_steps
from entmtp.policies.base import Policy
from entmtp.policies.dynamic import DynamicPolicy
from entmtp.policies.goodput import GoodputPolicy
from entmtp.policies.ladder import Ladder, LadderPolicy
from entmtp.policies.policy_cost import FixedCost
from entmtp.policies.signals import Signals
from entmtp.policies.static import StaticPolicy
from entmtp.policies.step_cost import StepCost
from entmtp.trees.probability_calibration import ProbabilityCalibration
from entmtp.trees.topology import Topology
from entmtp.trees.trace_replay import accepted_lengths, visits
from tests.helpers.policy_costs import LinearCost
from tests.helpers.small_cases import (
    drafting,
    drawn_trace,
    single_engine,
    small_backbone,
    small_chances,
    small_heads,
    small_predictor,
    small_prompt,
    small_sharp_chances,
    traced,
)
from tests.helpers.tiny_models import TREES


def one(tree: Topology) -> StaticPolicy:
    return StaticPolicy(tree, entropy_window=8)


def ladder(entropy: torch.Tensor) -> Policy:
    low, high = torch.quantile(entropy, torch.tensor([0.4, 0.6])).tolist()
    rungs = (TREES["bushy"], TREES["chain"], Topology.root_only())
    return LadderPolicy(Ladder((low, high), rungs, entropy_window=4), hysteresis=0.0)


def goodput(entropy: torch.Tensor) -> Policy:
    high, low = torch.quantile(entropy, torch.tensor([0.7, 0.3])).tolist()
    seen = small_predictor().model_copy(
        update={"features": ["entropy", "accepted_ema"], "weights": [-1.0, 0.1], "centres": [-high, -low, 0.0]}
    )
    return GoodputPolicy(seen, FixedCost(lambda batch, context: LinearCost(10.0, 2.0)), entropy_window=4)


@pytest.mark.parametrize("make", [ladder, goodput])
def test_an_adaptive_policys_steps_are_those_of_real_decoding(make: Callable[[torch.Tensor], Policy]) -> None:
    backbone = small_backbone()
    heads = small_heads("hydra", backbone)
    prompt = small_prompt(6)
    plain = single_engine(backbone, None, one(Topology.root_only())).generate(prompt, 60)
    trace = traced(backbone, heads, prompt, plain.tokens)
    policy = make(trace.entropy)
    real = single_engine(backbone, heads, policy).generate(prompt, 60)
    assert real.tokens == plain.tokens
    steps = replay_steps(trace, policy)
    assert len({step.topology for step in steps}) > 1
    assert [(step.position, step.topology) for step in steps] == [(step.position, step.topology) for step in real.steps]
    # The text's end is the trace's last token, which cuts what a real step drafted after it.
    assert [step.gained for step in steps[:-2]] == [step.gained for step in real.steps[:-2]]


@pytest.mark.parametrize("chances", [small_chances(), small_sharp_chances()], ids=["plain", "sharpness"])
@pytest.mark.parametrize("kind", ["medusa", "hydra"])
def test_growing_trees_are_those_of_real_decoding(kind: str, chances: ProbabilityCalibration) -> None:
    backbone = small_backbone()
    heads = small_heads(kind, backbone)
    prompt = small_prompt(6)
    predictor = small_predictor().model_copy(update={"centres": [-9.0, -8.0, 0.0]})
    cost = StepCost(
        nodes=[0, 63],
        verify_ms=[20.0, 24.0],
        narrow_draft_ms=[0.1, 0.2, 0.3, 0.4],
        wide_draft_ms=[0.1, 0.2, 0.3, 0.4],
        wide_nodes=63,
        hardware="test",
    )
    policy = DynamicPolicy(predictor, chances, FixedCost(cost.of_batch), entropy_window=8)
    real = single_engine(backbone, heads, policy).generate(prompt, 60)
    trace = traced(backbone, heads, prompt, real.tokens)
    with torch.inference_mode():
        steps = replay_steps(trace, policy, drafting(backbone, heads, prompt, real.tokens))
    assert len({step.topology for step in steps}) > 1
    assert [(step.position, step.topology) for step in steps] == [(step.position, step.topology) for step in real.steps]


@pytest.mark.parametrize("name", ["root", "chain", "wide", "bushy"])
def test_a_static_trees_steps_are_its_visits(name: str) -> None:
    trace = drawn_trace(200, [0.5, 0.2], heads=4, seed=1)
    starts = [step.position for step in replay_steps(trace, one(TREES[name]))]
    assert starts == visits(accepted_lengths(trace, TREES[name])).tolist()


def test_a_policy_sees_what_steps_before_gained() -> None:
    seen: list[Signals] = []

    class Watching(StaticPolicy):
        def choose_one(self, signals: Signals, state: Any, limit: int) -> Topology:
            seen.append(signals)
            return super().choose_one(signals, state, limit)

    trace = drawn_trace(50, [0.7], heads=4, seed=3)
    steps = replay_steps(trace, Watching(TREES["chain"], entropy_window=1))
    assert [signals.accepted_ema for signals in seen[1:]] == pytest.approx([step.gained for step in steps[:-1]])
    assert [signals.entropy for signals in seen] == trace.entropy[[step.position for step in steps]].tolist()
