"""Replay of policies: the steps that one would have taken through a rank trace, without the model."""

from __future__ import annotations

from dataclasses import dataclass

from entmtp.scheduling.policies import Policy
from entmtp.scheduling.signals import Signals, SignalTracker
from entmtp.trees.replay import accepted_length
from entmtp.trees.topology import Topology
from entmtp.trees.trace import RankTrace


@dataclass(frozen=True)
class ReplayedStep:
    """A step that gains ``gained`` tokens, root included, the text's end not minded."""

    signals: Signals
    topology: Topology
    gained: int

    @property
    def position(self) -> int:
        """Where it starts."""
        return self.signals.position


def replayed(trace: RankTrace, policy: Policy) -> list[ReplayedStep]:
    """The policy's steps through one text, with the signals that it would have seen."""
    tracker, state = SignalTracker(policy.entropy_window), policy.start()
    steps: list[ReplayedStep] = []
    ranks, entropy = trace.ranks.tolist(), trace.entropy.tolist()
    at = 0
    while at < len(trace):
        signals = tracker.start_step(at, entropy[at])
        (topology,) = policy.choose([signals], [state])
        gained = 1 + accepted_length(topology, ranks[at])
        tracker.end_step(gained)
        steps.append(ReplayedStep(signals, topology, gained))
        at += gained
    return steps
