"""Replay of policies: the steps that one would have taken through a rank trace, without the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from entmtp.scheduling.policies import Policy
from entmtp.scheduling.signals import SignalTracker
from entmtp.trees.replay import accepted_length
from entmtp.trees.topology import Topology
from entmtp.trees.trace import RankTrace


@dataclass(frozen=True)
class ReplayedStep:
    """A step that starts at ``position`` and gains ``gained`` tokens, root included, the text's end not minded."""

    position: int
    topology: Topology
    gained: int


def replayed(trace: RankTrace, policy: Policy) -> list[ReplayedStep]:
    """The policy's steps through one text, with the signals that it would have seen."""
    tracker, state = SignalTracker(policy.entropy_window), policy.start()
    steps: list[ReplayedStep] = []
    ranks, entropy = trace.ranks.tolist(), trace.entropy.tolist()
    at = 0
    while at < len(trace):
        topology = policy.choose(tracker.start_step(at, entropy[at]), state)
        gained = 1 + accepted_length(topology, ranks[at])
        tracker.end_step(gained)
        steps.append(ReplayedStep(at, topology, gained))
        at += gained
    return steps


@dataclass(frozen=True)
class Prediction:
    """What replay says of a policy over texts.

    Attributes:
        tau: tokens per step, root included.
        speedup: over plain decoding at the same cost of steps.
    """

    tau: float
    speedup: float


def predicted(
    traces: Sequence[RankTrace], policy_of: Callable[[RankTrace], Policy], cost: Callable[[Topology], float]
) -> Prediction:
    """Tau and speedup of the policy that each text gets, where a step with a tree costs ``cost`` milliseconds."""
    steps = [step for trace in traces for step in replayed(trace, policy_of(trace))]
    tokens = sum(map(len, traces))
    plain = tokens * cost(Topology.root_only())
    return Prediction(tokens / len(steps), plain / sum(cost(step.topology) for step in steps))
