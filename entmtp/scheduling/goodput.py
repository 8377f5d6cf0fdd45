"""The goodput policy: at every step the tree with which the text gains most tokens per millisecond.

That is the tree with the largest ``gain - rate * cost`` (:mod:`entmtp.scheduling.rate`), its gain foretold from the
signals of this very step.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from entmtp.scheduling.rate import Cost, best_choices
from entmtp.scheduling.signals import Signals
from entmtp.trees.predictor import Predictor
from entmtp.trees.topology import Topology

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


class GoodputPolicy:
    """Chooses by expected gain and cost; nothing is remembered of a request but its moving averages."""

    def __init__(self, predictor: Predictor, cost: Cost, entropy_window: int) -> None:
        self.predictor = predictor
        self.entropy_window = entropy_window
        self.trees = candidates(predictor)
        self._gains = predictor.gains(self.trees)
        self._costs = np.array([cost(tree) for tree in self.trees])
        per_centre = [self._costs] * len(predictor.shares)
        self.rate = best_choices(list(self._gains), per_centre, np.array(predictor.shares))[1]
        self._worth = self._gains - self.rate * self._costs

    def start(self) -> None:
        """Nothing to remember."""

    def choose(self, signals: Signals, state: None) -> Topology:
        score = self.predictor.score(signals.values(self.predictor.features))
        return self.trees[int((self.predictor.blend(score) @ self._worth).argmax())]
