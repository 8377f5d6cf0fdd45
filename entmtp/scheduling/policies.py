"""Policies: which topology a step gets. A policy is stateless; what it remembers of a request lives in its state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from entmtp.scheduling.ladder import Ladder
from entmtp.scheduling.signals import Signals
from entmtp.trees.topology import Topology


class Policy(Protocol):
    """Chooses the topology of a request's next step."""

    entropy_window: int

    def start(self) -> Any:
        """A fresh per-request state."""

    def choose(self, signals: Signals, state: Any) -> Topology:
        """The tree of this step; may update ``state``."""


class StaticPolicy:
    """One tree for every step: plain decoding, the Medusa and Hydra arms."""

    def __init__(self, topology: Topology, entropy_window: int) -> None:
        self.topology = topology
        self.entropy_window = entropy_window

    def start(self) -> None:
        """Nothing to remember."""

    def choose(self, signals: Signals, state: None) -> Topology:
        return self.topology


class LadderPolicy:
    """The paper's policy: entropy-EMA thresholds over the bank, with hysteresis so that noise does not flap the tree.

    The state is a one-element list with the current rung, or -1 before the first step.
    """

    def __init__(self, ladder: Ladder, hysteresis: float) -> None:
        self.ladder = ladder
        self.hysteresis = hysteresis
        self.entropy_window = ladder.entropy_window

    def start(self) -> list[int]:
        return [-1]

    def choose(self, signals: Signals, state: list[int]) -> Topology:
        if state[0] < 0:
            state[0] = self.ladder.rung_of(signals.entropy_ema)
        # A threshold counts as passed only once the entropy is the hysteresis beyond it; then as many as that are.
        lowest = self.ladder.rung_of(signals.entropy_ema - self.hysteresis)
        highest = self.ladder.rung_of(signals.entropy_ema + self.hysteresis)
        state[0] = min(max(state[0], lowest), highest)
        return self.ladder.rungs[state[0]]


class ScheduledPolicy:
    """Trees fixed beforehand by text position: the hindsight oracle."""

    def __init__(self, by_position: Mapping[int, Topology], entropy_window: int) -> None:
        self.by_position = by_position
        self.entropy_window = entropy_window

    def start(self) -> None:
        """Nothing to remember."""

    def choose(self, signals: Signals, state: None) -> Topology:
        return self.by_position.get(signals.position, Topology.root_only())


class SequencePolicy:
    """Trees one after another, whatever the text does: the control with another policy's shares, shuffled in time.

    The state is a one-element list with the number of steps taken; the sequence repeats when it ends.
    """

    def __init__(self, sequence: Sequence[Topology], entropy_window: int) -> None:
        self.sequence = sequence
        self.entropy_window = entropy_window

    def start(self) -> list[int]:
        return [0]

    def choose(self, signals: Signals, state: list[int]) -> Topology:
        state[0] += 1
        return self.sequence[(state[0] - 1) % len(self.sequence)]
