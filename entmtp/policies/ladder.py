"""Best trees of a bank at this machine's step costs: the best static tree, and the ladder's tree per entropy bin.

A schedule is judged by tokens per millisecond (:mod:`entmtp.policies.rate`). Plain decoding is always a candidate. So
are trees that stop before the heads' last level, which saves that level's time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial

import numpy as np

from entmtp.errors import EntMTPError
from entmtp.policies.base import RequestPolicy
from entmtp.policies.policy_cost import PolicyCost, cached_at
from entmtp.policies.rate import Cost, best_choices
from entmtp.policies.registry import PolicyInputs, register_policy
from entmtp.policies.signals import Signals
from entmtp.settings import LadderSettings
from entmtp.trees.bank import MAX_NODES, Frontier, TreeBank
from entmtp.trees.topology import Topology


@dataclass(frozen=True)
class Ladder:
    """Trees by entropy: rung i is used while ``thresholds[i - 1] <= entropy EMA < thresholds[i]``, in nats."""

    thresholds: tuple[float, ...]
    rungs: tuple[Topology, ...]
    entropy_window: int

    def __post_init__(self) -> None:
        if any(low >= high for low, high in zip(self.thresholds, self.thresholds[1:], strict=False)):
            raise EntMTPError(f"ladder: thresholds {self.thresholds} must increase")
        if len(self.rungs) != len(self.thresholds) + 1:
            raise EntMTPError(f"ladder: {len(self.thresholds)} thresholds need {len(self.thresholds) + 1} rungs")

    def rung_of(self, entropy: float) -> int:
        """Index of the rung of an entropy EMA."""
        return sum(entropy >= threshold for threshold in self.thresholds)

    @cached_property
    def nodes(self) -> int:
        """Nodes of the largest rung."""
        return max(rung.nodes for rung in self.rungs)

    def truncated(self, nodes: int) -> Ladder:
        """The same ladder with each rung cut to ``nodes`` nodes (:meth:`Topology.truncated`)."""
        return replace(self, rungs=tuple(rung.truncated(nodes) for rung in self.rungs))


def best_static(bank: TreeBank, cost: Cost, nodes: int = MAX_NODES) -> Topology:
    """Return the tree of at most ``nodes`` nodes with the most expected tokens per millisecond as a static tree."""
    choices = [
        (tree, gain)
        for one in bank.by_depth
        for tree, gain in zip(one.trees, one.gain, strict=True)
        if tree.nodes <= nodes
    ]
    return max(choices, key=lambda choice: choice[1] / cost(choice[0]))[0]


def build_ladder(bank: TreeBank, cost: Cost, nodes: int = MAX_NODES) -> Ladder:
    """Build the bank's best ladder of trees up to ``nodes`` nodes; ``cost`` is milliseconds of a step with a tree."""
    return Ladder(tuple(bank.thresholds), best_rungs(bank.bins, cost, nodes), bank.entropy_window)


def best_rungs(bins: Sequence[Frontier], cost: Cost, nodes: int = MAX_NODES) -> tuple[Topology, ...]:
    """Return the tree of each bin, of at most ``nodes`` nodes, with which the text as a whole is fastest."""
    choices = [[(tree, gain) for tree, gain in one.choices if tree.nodes <= nodes] for one in bins]
    gains = [np.array([gain for _, gain in its]) for its in choices]
    costs = [np.array([cost(tree) for tree, _ in its]) for its in choices]
    chosen, _ = best_choices(gains, costs, np.array([one.share for one in bins]))
    return tuple(its[at][0] for its, at in zip(choices, chosen, strict=True))


class LadderPolicy(RequestPolicy):
    """The paper's policy: entropy-EMA thresholds over the bank, with hysteresis against noise.

    The state is a one-element list with the current rung, or -1 before the first step.
    """

    def __init__(self, ladder: Ladder, hysteresis: float) -> None:
        self.hysteresis = hysteresis
        self.entropy_window = ladder.entropy_window
        self.max_nodes = ladder.nodes
        self._within: Callable[[int], Ladder] = cache(ladder.truncated)

    @property
    def ladder(self) -> Ladder:
        """The current ladder for requests without a limit."""
        return self._within(MAX_NODES)

    def start(self) -> list[int]:
        return [-1]

    def choose_one(self, signals: Signals, state: list[int], limit: int) -> Topology:
        ladder = self.ladder
        if state[0] < 0:
            state[0] = ladder.rung_of(signals.entropy_ema)
        # A threshold is passed only once the entropy is beyond it by the hysteresis. Several may be passed at once.
        lowest = ladder.rung_of(signals.entropy_ema - self.hysteresis)
        highest = ladder.rung_of(signals.entropy_ema + self.hysteresis)
        state[0] = min(max(state[0], lowest), highest)
        return (ladder if ladder.nodes <= limit else self._within(limit)).rungs[state[0]]


class BankLadderPolicy(LadderPolicy):
    """The bank's best ladder at the current costs; under a limit, its best ladder of trees within the limit."""

    def __init__(self, bank: TreeBank, cost: PolicyCost, hysteresis: float) -> None:
        super().__init__(build_ladder(bank, cost), hysteresis)
        self.cost = cost
        self.max_nodes = max(len(one.paths) for one in bank.bins)
        self._within = cached_at(cost, partial(build_ladder, bank, cost))


@register_policy("ladder")
def _ladder(inputs: PolicyInputs) -> BankLadderPolicy:
    return BankLadderPolicy(inputs.needs_bank(), inputs.needs_cost(), LadderSettings().hysteresis)
