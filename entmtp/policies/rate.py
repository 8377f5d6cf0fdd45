"""Maximum tokens per millisecond of a schedule in which each state of the text may have its own tree.

Steps follow one another. So the best tree is not the one with the largest ratio of its own gain to its own cost. It is
the one with the largest ``gain - rate * cost``, where ``rate`` is what the whole schedule reaches (a renewal-reward
problem, Dinkelbach 1967). ``rate`` is the token price of a millisecond: what other steps would gain in it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from entmtp.trees.topology import Topology

Cost = Callable[[Topology], float]
"""Milliseconds of a step with a tree."""


def best_choices(
    gains: Sequence[np.ndarray], costs: Sequence[np.ndarray], shares: np.ndarray
) -> tuple[list[int], float]:
    """Find the best choice in each state, and the tokens per millisecond that they reach together.

    ``gains[i] [choices]`` are the expected tokens per step in state i, and ``costs[i] [choices]`` the milliseconds.
    ``shares[i]`` of the steps start in state i. The search begins with the first choice of each state.
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
