"""The goodput policy: at every step the tree with which the text gains most tokens per millisecond.

Steps follow one another, so the tree that pays best is not the one with the largest ratio of its own gain to its own
cost, but with the largest ``gain - rate * cost``, the rate being what the whole schedule reaches (a renewal-reward
problem, Dinkelbach 1967): a millisecond is worth what other steps would make of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from entmtp.scheduling.signals import Signals
from entmtp.trees.predictor import Predictor
from entmtp.trees.topology import Topology

Cost = Callable[[Topology], float]
SIZES = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 63)


def candidates(predictor: Predictor, sizes: Sequence[int] = SIZES) -> list[Topology]:
    """The trees worth choosing from: at each centre the likeliest paths of each depth, in each size."""
    found: dict[tuple[tuple[int, ...], ...], Topology] = {}
    deepest = max(map(len, predictor.paths), default=0)
    for row in predictor.table:
        # Parents before children among equals, so that every beginning of the order is a tree.
        order = sorted(range(len(row)), key=lambda at: (-row[at], len(predictor.paths[at]), predictor.paths[at]))
        for depth in range(1, deepest + 1):
            paths = [predictor.paths[at] for at in order if len(predictor.paths[at]) <= depth]
            for size in sizes:
                tree = Topology.of(paths[:size]) if size and paths else Topology.root_only()
                found.setdefault(tree.paths, tree)
    return list(found.values())


def best_rate(gains: np.ndarray, costs: np.ndarray, shares: np.ndarray) -> float:
    """Tokens per millisecond of the best choice per centre: ``gains [centres, trees]``, ``costs [trees]``."""
    rate = 0.0
    while True:
        choice = (gains - rate * costs).argmax(1)
        raised = float(shares @ gains[np.arange(len(gains)), choice] / (shares @ costs[choice]))
        if raised <= rate * (1 + 1e-9):
            return rate
        rate = raised


class GoodputPolicy:
    """Chooses by expected gain and cost; nothing is remembered of a request but its moving averages."""

    def __init__(self, predictor: Predictor, cost: Cost, entropy_window: int) -> None:
        self.predictor = predictor
        self.entropy_window = entropy_window
        self.trees = candidates(predictor)
        self._gains = predictor.gains(self.trees)
        self._costs = np.array([cost(tree) for tree in self.trees])
        self.rate = best_rate(self._gains, self._costs, np.array(predictor.shares))
        self._worth = self._gains - self.rate * self._costs

    def start(self) -> None:
        """Nothing to remember."""

    def choose(self, signals: Signals, state: None) -> Topology:
        score = self.predictor.score(signals.values(self.predictor.features))
        return self.trees[int((self.predictor.blend(score) @ self._worth).argmax())]
