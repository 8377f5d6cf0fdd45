"""A request while it runs, and what each of its steps did."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from entmtp.scheduling.signals import Signals, SignalTracker
from entmtp.trees.topology import Path, Topology


@dataclass(frozen=True)
class StepRecord:
    """One step of one request. Times are milliseconds; ``gained`` counts the root, before any cut at the end."""

    position: int
    topology: Topology
    path: Path
    signals: Signals
    draft_ms: float
    verify_ms: float
    accept_ms: float
    compact_ms: float
    policy_ms: float

    @property
    def gained(self) -> int:
        """Tokens that the step kept: the root and the accepted path."""
        return 1 + len(self.path)


@dataclass
class RunningRequest:
    """A request in a cache slot.

    ``tokens`` are those that came out so far. The *root* was chosen by the model from a distribution of ``entropy``
    nats, and comes out with the next step.
    """

    slot: int
    tracker: SignalTracker
    policy_state: Any
    root: int
    entropy: float
    tokens: list[int] = field(default_factory=list)
    steps: list[StepRecord] = field(default_factory=list)
