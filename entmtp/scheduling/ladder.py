"""Which trees of a bank pay on this machine: the best static tree, and the ladder's tree per entropy bin.

A schedule is judged by tokens over time. For fixed bins the best one follows from a ratio problem (Dinkelbach 1967):
with lambda the schedule's tokens per millisecond, each bin takes the tree with the largest ``gain - lambda * cost``,
and lambda is raised to the new schedule's rate until it no longer grows. Plain decoding is always a candidate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from entmtp.errors import EntMTPError
from entmtp.trees.bank import Frontier, TreeBank
from entmtp.trees.topology import Topology

Cost = Callable[[Topology], float]


@dataclass(frozen=True)
class Ladder:
    """Rung i is climbed to while the entropy EMA lies between ``thresholds[i - 1]`` and ``thresholds[i]`` nats."""

    thresholds: tuple[float, ...]
    rungs: tuple[Topology, ...]
    entropy_window: int

    def __post_init__(self) -> None:
        if any(low >= high for low, high in zip(self.thresholds, self.thresholds[1:], strict=False)):
            raise EntMTPError(f"ladder: thresholds {self.thresholds} must increase")
        if len(self.rungs) != len(self.thresholds) + 1:
            raise EntMTPError(f"ladder: {len(self.thresholds)} thresholds need {len(self.thresholds) + 1} rungs")

    def rung_of(self, entropy: float) -> int:
        """The rung that an entropy EMA belongs to."""
        return sum(entropy >= threshold for threshold in self.thresholds)


def best_static(frontier: Frontier, cost: Cost) -> Topology:
    """The tree with the most expected tokens per millisecond."""
    return max(enumerate(frontier.trees), key=lambda item: frontier.gain[item[0]] / cost(item[1]))[1]


def build_ladder(bank: TreeBank, cost: Cost) -> Ladder:
    """The bank's best ladder under ``cost`` (milliseconds of a step with a tree)."""
    # Plain decoding in every bin: a rate that the bins themselves reach, so that it can only rise from there.
    choice = [0] * len(bank.bins)
    rate = _rate(bank.bins, choice, cost)
    while True:
        better = [_best_at(frontier, cost, rate) for frontier in bank.bins]
        if (raised := _rate(bank.bins, better, cost)) <= rate:
            break
        choice, rate = better, raised
    rungs = tuple(frontier.trees[nodes] for frontier, nodes in zip(bank.bins, choice, strict=True))
    return Ladder(tuple(bank.thresholds), rungs, bank.entropy_window)


def _rate(bins: Sequence[Frontier], choice: Sequence[int], cost: Cost) -> float:
    """Tokens per millisecond with ``choice[i]`` nodes in bin i."""
    tokens = sum(one.share * one.gain[nodes] for one, nodes in zip(bins, choice, strict=True))
    time = sum(one.share * cost(one.trees[nodes]) for one, nodes in zip(bins, choice, strict=True))
    return tokens / time


def _best_at(frontier: Frontier, cost: Cost, rate: float) -> int:
    return max(range(len(frontier.trees)), key=lambda nodes: frontier.gain[nodes] - rate * cost(frontier.trees[nodes]))
