"""A policy that expands trees level by level to a fixed depth, so that expansion can be timed.

The heads, the dynamic policy and their synchronisation are real. Only the probabilities that the policy reads are
scripted, so that every step runs the same levels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from entmtp.heads.interface import Expansion
from entmtp.policies.acceptance_bias import AcceptanceBias
from entmtp.policies.base import BeginDraft, Choice, Policy
from entmtp.policies.dynamic import DynamicPolicy
from entmtp.policies.policy_cost import FixedCost
from entmtp.policies.signals import Signals
from entmtp.policies.step_cost import StepCost
from entmtp.settings import CalibrationSettings
from entmtp.trees.predictor import Predictor
from entmtp.trees.probability_calibration import ProbabilityCalibration

GUESSES = (0.75, 0.15, 0.05, 0.02)
"""Probabilities of a node's guesses, about those of heads on easy text. The second guess also pays for a level."""

_NODE_MS, _LEVEL_MS = 0.045, 1e-6
"""Cost of a node and of a level in a step of 1 ms: a node needs a probability of 8.6%, and every level pays."""

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
    """The dynamic policy with ``depth`` levels on heads whose confidence is the same at every step."""

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
        self._dynamic = DynamicPolicy(_SURE, chances, FixedCost(lambda batch, context: cost), self.entropy_window)

    def start(self) -> AcceptanceBias:
        return self._dynamic.start()

    def choose(
        self, signals: Sequence[Signals], states: Sequence[AcceptanceBias], limits: Sequence[int], begin: BeginDraft
    ) -> list[Choice]:
        return self._dynamic.choose(signals, states, limits, lambda requests: _Scripted(begin(requests)))


class _Scripted(Expansion):
    """An expansion whose guesses have the probabilities of :data:`GUESSES`."""

    def __init__(self, expansion: Expansion) -> None:
        self.num_heads = expansion.num_heads
        self._expansion = expansion

    def next_level(self, parents: Sequence[int], count: int) -> tuple[torch.Tensor, torch.Tensor]:
        tokens, log_probs = self._expansion.next_level(parents, count)
        scripted = torch.tensor(GUESSES[:count]).log().to(log_probs.device, non_blocking=True)
        return tokens, scripted.expand_as(log_probs)
