"""The most tokens per millisecond that a schedule can reach when each state of the text may have its own tree.

Steps follow one another, so the tree that pays best is not the one with the largest ratio of its own gain to its own
cost, but with the largest ``gain - rate * cost``, the rate being what the whole schedule reaches (a renewal-reward
problem, Dinkelbach 1967): a millisecond is worth what other steps would make of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from entmtp.trees.topology import Topology

Cost = Callable[[Topology], float]
"""Milliseconds of a step with a tree."""

BatchCosts = Callable[[int, int], Cost]
"""Cost by the number of a step's requests, all with the same tree, and by their mean context in tokens."""


def best_choices(
    gains: Sequence[np.ndarray], costs: Sequence[np.ndarray], shares: np.ndarray
) -> tuple[list[int], float]:
    """The choice in each state, and the tokens per millisecond that they reach together.

    Of state i, ``gains[i] [choices]`` are expected tokens per step and ``costs[i] [choices]`` milliseconds;
    ``shares[i]`` of the steps start in it. The first choice of each state is where the search begins.
    """
    chosen = [0] * len(gains)
    rate = _rate(gains, costs, shares, chosen)
    while True:
        better = [int((gain - rate * cost).argmax()) for gain, cost in zip(gains, costs, strict=True)]
        if (raised := _rate(gains, costs, shares, better)) <= rate * (1 + 1e-12):
            return chosen, rate
        chosen, rate = better, raised


def _rate(gains: Sequence[np.ndarray], costs: Sequence[np.ndarray], shares: np.ndarray, chosen: Sequence[int]) -> float:
    tokens = sum(share * gain[at] for share, gain, at in zip(shares, gains, chosen, strict=True))
    time = sum(share * cost[at] for share, cost, at in zip(shares, costs, chosen, strict=True))
    return float(tokens / time)
