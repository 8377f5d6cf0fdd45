"""Policies: which topologies a step gets. A policy is stateless; what it remembers of a request lives in its state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from entmtp.heads.growth import Growth
from entmtp.policies.ladder import Ladder, best_static, build_ladder
from entmtp.policies.rate import Cost
from entmtp.policies.signals import Signals
from entmtp.trees.bank import TreeBank
from entmtp.trees.topology import Topology


@dataclass(frozen=True)
class Choice:
    """A request's tree for a step.

    Attributes:
        tokens: of its nodes in the topology's order, where heads guessed them while the tree was chosen; else None,
            and the heads fill the tree afterwards.
    """

    topology: Topology
    tokens: list[int] | None = None


BeginDraft = Callable[[Sequence[int]], Growth]
"""Begins to draft behind the roots of some of the step's requests, for trees that are chosen while they grow."""


class Policy(ABC):
    """Chooses the topologies of the running requests' next step, of all at once: they share its time."""

    entropy_window: int

    def start(self) -> Any:
        """A fresh per-request state, which a shallow copy separates; None where nothing is remembered."""
        return None

    @abstractmethod
    def choose(
        self, signals: Sequence[Signals], states: Sequence[Any], limits: Sequence[int], begin: BeginDraft
    ) -> list[Choice]:
        """The tree of each request for this step; may update ``states``.

        ``limits`` are the most nodes that each request's tree may have: its best tree within that is chosen. The heads
        don't run for a request with limit 0. Either all of the trees are filled with tokens or none is.
        """

    @property
    def foretold(self) -> float | None:
        """Tokens per millisecond that the last choice should gain; None where a policy does not say."""
        return None

    def observe(self, topologies: Sequence[Topology], ms: Mapping[str, float]) -> None:
        """Learns what a step with these trees took, by its parts; most policies need not know."""
        return

    def close(self) -> None:
        """Keeps for the next run what this one has learnt; most policies learn nothing."""
        return

    def reprice(self) -> bool:
        """Takes in that the costs which it was made from have changed; False where it has to be made anew for that."""
        return False


class RequestPolicy(Policy):
    """One that looks at each request by itself."""

    def choose(
        self, signals: Sequence[Signals], states: Sequence[Any], limits: Sequence[int], begin: BeginDraft
    ) -> list[Choice]:
        return [Choice(self.choose_one(*request)) for request in zip(signals, states, limits, strict=True)]

    @abstractmethod
    def choose_one(self, signals: Signals, state: Any, limit: int) -> Topology:
        """The tree of one request, of at most ``limit`` nodes; may update ``state``."""


class UndraftedPolicy(Policy):
    """Another policy in a step in which nothing may be drafted, which it takes in as its own choice."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self.entropy_window = policy.entropy_window

    def choose(
        self, signals: Sequence[Signals], states: Sequence[Any], limits: Sequence[int], begin: BeginDraft
    ) -> list[Choice]:
        return self._policy.choose(signals, states, [0] * len(limits), begin)


class StaticPolicy(RequestPolicy):
    """One tree for every step: plain decoding, the Medusa and Hydra arms."""

    def __init__(
        self, topology: Topology, entropy_window: int, within: Callable[[int], Topology] | None = None
    ) -> None:
        """``within`` finds the best tree of at most so many nodes; by default it is :meth:`Topology.first`."""
        self.topology = topology
        self.entropy_window = entropy_window
        self._within = cache(within or topology.first)

    def choose_one(self, signals: Signals, state: None, limit: int) -> Topology:
        return self.topology if self.topology.nodes <= limit else self._within(limit)


class LadderPolicy(RequestPolicy):
    """The paper's policy: entropy-EMA thresholds over the bank, with hysteresis so that noise does not flap the tree.

    The state is a one-element list with the current rung, or -1 before the first step.
    """

    def __init__(self, ladder: Ladder, hysteresis: float, within: Callable[[int], Ladder] | None = None) -> None:
        """``within`` finds the best ladder of trees of at most so many nodes, with the same thresholds.

        By default it is :meth:`Ladder.first`.
        """
        self.ladder = ladder
        self.hysteresis = hysteresis
        self.entropy_window = ladder.entropy_window
        self._most = max(rung.nodes for rung in ladder.rungs)
        self._within = cache(within or ladder.first)

    def start(self) -> list[int]:
        return [-1]

    def choose_one(self, signals: Signals, state: list[int], limit: int) -> Topology:
        if state[0] < 0:
            state[0] = self.ladder.rung_of(signals.entropy_ema)
        # A threshold counts as passed only once the entropy is the hysteresis beyond it; then as many as that are.
        lowest = self.ladder.rung_of(signals.entropy_ema - self.hysteresis)
        highest = self.ladder.rung_of(signals.entropy_ema + self.hysteresis)
        state[0] = min(max(state[0], lowest), highest)
        ladder = self.ladder if self._most <= limit else self._within(limit)
        return ladder.rungs[state[0]]


class ScheduledPolicy(RequestPolicy):
    """Trees fixed beforehand by text position, by one who knows the text."""

    def __init__(self, by_position: Mapping[int, Topology], entropy_window: int) -> None:
        self.by_position = by_position
        self.entropy_window = entropy_window

    def choose_one(self, signals: Signals, state: None, limit: int) -> Topology:
        return self.by_position.get(signals.position, Topology.root_only()).first(limit)


class SequencePolicy(RequestPolicy):
    """Trees one after another, whatever the text does: the control with another policy's shares, shuffled in time.

    The state is a one-element list with the number of steps taken; the sequence repeats when it ends.
    """

    def __init__(self, sequence: Sequence[Topology], entropy_window: int) -> None:
        self.sequence = sequence
        self.entropy_window = entropy_window

    def start(self) -> list[int]:
        return [0]

    def choose_one(self, signals: Signals, state: list[int], limit: int) -> Topology:
        state[0] += 1
        return self.sequence[(state[0] - 1) % len(self.sequence)].first(limit)


def best_static_policy(bank: TreeBank, cost: Cost, entropy_window: int) -> StaticPolicy:
    """The bank's best tree at every step; under a limit, its best tree within that."""
    return StaticPolicy(best_static(bank, cost), entropy_window, lambda nodes: best_static(bank, cost, nodes))


def ladder_policy(bank: TreeBank, cost: Cost, hysteresis: float) -> LadderPolicy:
    """The bank's best ladder; under a limit, its best ladder of trees within that."""
    return LadderPolicy(build_ladder(bank, cost), hysteresis, lambda nodes: build_ladder(bank, cost, nodes))
