"""Trees of a wanted depth that grow level by level whatever the heads say, so that growing can be timed.

The heads, the dynamic policy and the waiting of one for the other are real; only what the policy reads as the heads'
probabilities is scripted, so that every step runs the same levels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from entmtp.heads.interface import Expansion
from entmtp.policies.acceptance_bias import AcceptanceBias
from entmtp.policies.base import BeginDraft, Choice, Policy
from entmtp.policies.dynamic import DynamicPolicy
from entmtp.policies.signals import Signals
from entmtp.policies.step_cost import StepCost
from entmtp.settings import CalibrationSettings
from entmtp.trees.predictor import Predictor
from entmtp.trees.probability_calibration import ProbabilityCalibration

GUESSES = (0.75, 0.15, 0.05, 0.02)
"""Probabilities of a node's guesses, about those of heads on easy text; the second one is worth a level of its own."""

_NODE_MS, _LEVEL_MS = 0.045, 1e-6
"""Of a step of 1 ms: a node must have a chance of 8.6%, and no level costs too much to run."""

_SURE = Predictor(
    features=["entropy"],
    weights=[0.0],
    bias=0.0,
    centres=[0.0],
    shares=[1.0],
    paths=[(0,)],
    probabilities=[[1.0]],
)


class FixedDepthPolicy(Policy):
    """The dynamic policy on heads that are as sure at every step, with ``depth`` levels."""

    def __init__(self, depth: int) -> None:
        self.entropy_window = CalibrationSettings().entropy_window
        chances = ProbabilityCalibration(slope=[1.0] * depth, offset=[0.0] * depth, follow=[list(GUESSES)] * depth)
        levels = [_LEVEL_MS * level for level in range(1, depth + 1)]
        cost = StepCost(
            nodes=[0, 63],
            verify_ms=[1.0, 1.0 + 63 * _NODE_MS],
            narrow_draft_ms=levels,
            wide_draft_ms=levels,
            wide_nodes=63,
            hardware="none",
        )
        self._dynamic = DynamicPolicy(_SURE, chances, lambda batch, context: cost, self.entropy_window)

    def start(self) -> AcceptanceBias:
        return self._dynamic.start()

    def choose(
        self, signals: Sequence[Signals], states: Sequence[AcceptanceBias], limits: Sequence[int], begin: BeginDraft
    ) -> list[Choice]:
        return self._dynamic.choose(signals, states, limits, lambda requests: _Scripted(begin(requests)))


class _Scripted:
    """A expansion whose guesses have the probabilities of :data:`GUESSES`."""

    def __init__(self, expansion: Expansion) -> None:
        self.num_heads = expansion.num_heads
        self._expansion = expansion

    def next_level(self, parents: Sequence[int], count: int) -> tuple[torch.Tensor, torch.Tensor]:
        tokens, log_probs = self._expansion.next_level(parents, count)
        scripted = torch.tensor(GUESSES[:count]).log().to(log_probs.device, non_blocking=True)
        return tokens, scripted.expand_as(log_probs)
