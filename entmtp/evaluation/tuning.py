"""Where a ladder's thresholds lie: found by replay, on texts other than those that the rungs were taken from.

Candidates are the quantiles of the entropy's moving average; every few of them are tried. Each set is judged by the
time that its ladder takes through one half of the texts with trees from the other half, and the other way round, so
that more rungs win only if they would on texts that nobody has seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import combinations, pairwise

import numpy as np

from entmtp.evaluation.prediction import StepRows
from entmtp.scheduling.ladder import Ladder, best_rungs
from entmtp.scheduling.policies import LadderPolicy
from entmtp.scheduling.rate import Cost
from entmtp.scheduling.replay import replayed
from entmtp.trees.bank import Frontier
from entmtp.trees.optimal import most_probable_paths
from entmtp.trees.trace import RankTrace

QUANTILES = 8
"""Candidate thresholds lie between so many equally frequent parts."""

NODES = 16
"""Of the largest rung that is tried: what decides between thresholds is seen in small trees, and costs less to try."""


def frontier_of(rows: np.ndarray, nodes: int, share: float) -> Frontier:
    """The optimal trees of steps with true ranks ``rows [steps, heads]``, their gains sums of paths' chances."""
    found = most_probable_paths(rows, nodes)
    gain = np.cumsum([1.0] + [probability for _, probability in found])
    return Frontier(paths=[path for path, _ in found], gain=gain.round(5).tolist(), share=share)


def tuned_thresholds(
    traces: Sequence[RankTrace],
    steps: StepRows,
    cost: Cost,
    *,
    window: int,
    hysteresis: float,
    most_rungs: int,
    fewest_steps: int,
) -> list[float]:
    """Nats between the rungs of the fastest ladder, increasing; none where no ladder beats a single tree.

    ``steps`` are of all ``traces``; a rung is made from at least ``fewest_steps`` of them.
    """
    if len(traces) < 2:
        return []
    ema = steps.entropy_ema
    edges = sorted({float(edge) for edge in np.quantile(ema, np.arange(1, QUANTILES) / QUANTILES).round(4)})
    part = np.searchsorted(edges, ema, side="right")
    half_of = np.random.default_rng(0).permutation(len(traces)) % 2  # suites may have an order of their own
    halves = [half_of[steps.text] == half for half in (0, 1)]

    @cache
    def rung(half: int, first: int, last: int) -> Frontier:
        inside = halves[half] & (part >= first) & (part <= last)
        return frontier_of(steps.ranks[inside], NODES, float(inside.sum() / max(1, halves[half].sum())))

    def milliseconds(chosen: Sequence[int]) -> float:
        """Of all texts under the ladder whose thresholds are these of ``edges``."""
        bounds = [0, *(at + 1 for at in chosen), len(edges) + 1]
        total = 0.0
        for half in (0, 1):
            frontiers = [rung(half, first, last - 1) for first, last in pairwise(bounds)]
            ladder = Ladder(tuple(edges[at] for at in chosen), best_rungs(frontiers, cost), window)
            policy = LadderPolicy(ladder, hysteresis)
            for trace in (trace for trace, its in zip(traces, half_of, strict=True) if its != half):
                total += sum(cost(step.topology) for step in replayed(trace, policy))
        return total

    counts = np.bincount(part, minlength=len(edges) + 1)
    tried = [
        chosen
        for size in range(most_rungs)
        for chosen in combinations(range(len(edges)), size)
        if size == 0 or min(each.sum() for each in np.split(counts, np.add(chosen, 1))) >= fewest_steps
    ]
    return [edges[at] for at in min(tried, key=milliseconds)]
