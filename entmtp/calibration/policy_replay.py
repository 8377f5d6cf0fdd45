"""Replay of policies: the steps that a policy would take through a rank trace, without running the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from entmtp.errors import EntMTPError
from entmtp.heads.interface import Expansion
from entmtp.policies.base import Policy
from entmtp.policies.signals import Signals, SignalTracker
from entmtp.trees.bank import MAX_NODES
from entmtp.trees.topology import Topology
from entmtp.trees.trace import RankedText
from entmtp.trees.trace_replay import accepted_length


@dataclass(frozen=True)
class ReplayedStep:
    """One replayed step.

    Attributes:
        gained: tokens gained, root included; it may exceed the text's end.
        levels: levels of heads that ran while the tree was expanded, even if no node came of them. 0 if the tree was
            chosen before the heads ran.
    """

    signals: Signals
    topology: Topology
    gained: int
    levels: int = 0

    @property
    def position(self) -> int:
        """Position of the text at which the step starts."""
        return self.signals.position


ExpansionAt = Callable[[int], Expansion]
"""Starts drafting after the token at a position of a text."""


def no_heads(position: int) -> Expansion:
    """Refuse to draft: for policies that choose before the heads run.

    Raises:
        EntMTPError: whenever it is called.
    """
    raise EntMTPError(
        "policy: 'dynamic' and 'eagle2' expand their trees with the heads; replay them where these are loaded"
    )


class _CountedExpansion(Expansion):
    """Expansion at a position, started when its first level is needed; counts the levels."""

    def __init__(self, expansion_at: ExpansionAt, position: int) -> None:
        self.levels = 0
        self._begin = partial(expansion_at, position)

    def begin(self, requests: Sequence[int]) -> Expansion:
        self._expansion = self._begin()
        self.num_heads = self._expansion.num_heads
        return self

    def next_level(self, parents: Sequence[int], count: int) -> tuple[torch.Tensor, torch.Tensor]:
        self.levels += 1
        return self._expansion.next_level(parents, count)

    def estimated_odds(self) -> torch.Tensor | None:
        return self._expansion.estimated_odds()


def replay_steps(trace: RankedText, policy: Policy, expansion_at: ExpansionAt = no_heads) -> list[ReplayedStep]:
    """Replay a policy through one text; return its steps with their signals.

    A policy that expands trees while the heads draft needs the heads again: ``expansion_at``.

    Raises:
        EntMTPError: if such a policy is replayed without ``expansion_at``.
    """
    tracker, state = SignalTracker(policy.entropy_window), policy.start()
    steps: list[ReplayedStep] = []
    ranks, entropy = trace.ranks.tolist(), trace.entropy.tolist()
    at = 0
    while at < len(trace):
        signals = tracker.start_step(at, entropy[at])
        drafting = _CountedExpansion(expansion_at, at)
        (choice,) = policy.choose([signals], [state], [MAX_NODES], drafting.begin)
        topology = choice.topology
        gained = 1 + accepted_length(topology, ranks[at])
        tracker.end_step(gained)
        steps.append(ReplayedStep(signals, topology, gained, drafting.levels))
        at += gained
    return steps
