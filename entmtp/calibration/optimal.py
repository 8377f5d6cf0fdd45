"""Optimal trees from rank traces: the whole Pareto frontier of nodes against tokens per step, in one pass.

The expected accepted length of a topology is the sum over its nodes of the probability that the true ranks start with
that node's path. Probabilities never rise along a path, so over *given* positions the n most probable paths are
prefix-closed and no tree of n nodes does better. But steps start more often where the text is hard, and where they
start depends on the tree. So the tree is built node by node. The candidates are the paths that are likeliest where its
own steps start. The one with which a replay of whole texts takes the fewest steps is added.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from entmtp.trees.topology import Path, Topology
from entmtp.trees.trace import RankTrace
from entmtp.trees.trace_replay import visits

MAX_RANK = 32
"""Ranks from this on are too unlikely for a node in a tree of at most 64."""

_CANDIDATES = 8
"""Paths that are replayed at each size, likeliest first: only a replay shows which of near equals saves more steps."""


def most_probable_paths(ranks: np.ndarray, count: int, depth: int | None = None) -> list[tuple[Path, float]]:
    """The ``count`` most frequent rank prefixes of ``ranks [positions, heads]`` with their probabilities.

    If ``depth`` is given, prefixes are at most that long.
    """
    prefixes: Counter[Path] = Counter()
    for row in ranks[:, :depth].tolist():
        for length, rank in enumerate(row, start=1):
            if rank >= MAX_RANK:
                break
            prefixes[tuple(row[:length])] += 1
    # A parent is at least as frequent as its child, and comes first among equals because it is shorter.
    ordered = sorted(prefixes.items(), key=lambda item: (-item[1], len(item[0]), item[0]))[:count]
    return [(path, number / len(ranks)) for path, number in ordered]


class _TreeBuilder:
    """Builds a tree path by path, with the steps that it takes through ``traces``.

    Attributes:
        order: the tree's paths in the order in which they were added.
    """

    def __init__(self, traces: Sequence[RankTrace], depth: int | None) -> None:
        self.order: list[Path] = []
        self._bounds = np.cumsum([0, *map(len, traces)])
        ranks = np.concatenate([trace.ranks.numpy() for trace in traces])
        self._paths = [path for path, _ in most_probable_paths(ranks, ranks.size, depth)]
        self._number = {path: number for number, path in enumerate(self._paths)}
        prefixes = [[self._number.get(tuple(row[: end + 1]), -1) for end in range(len(row))] for row in ranks.tolist()]
        self._prefixes = np.array(prefixes)  # [positions, heads]: path number of each prefix of the true ranks
        self._lengths = np.zeros(len(ranks), dtype=np.int64)
        self._open: set[Path] = {path for path in self._paths if len(path) == 1}

    def add_path(self) -> bool:
        """Add the best path; returns False if no path is left."""
        tried = self._likeliest()
        if not tried:
            return False
        lengths = np.repeat(self._lengths[None], len(tried), axis=0)
        for row, path in zip(lengths, tried, strict=True):
            row[self._prefixes[:, len(path) - 1] == self._number[path]] = len(path)
        best = int(self._steps(lengths).argmin())  # among equals the likeliest
        self._lengths = lengths[best]
        self.order.append(tried[best])
        self._open.remove(tried[best])
        self._open.update(path for path in self._paths if path[:-1] == tried[best])
        return True

    def _likeliest(self) -> list[Path]:
        """List the open paths that are right at most of the tree's own steps; among equals those of most positions."""
        starts = np.concatenate(
            [begin + visits(self._lengths[begin:end]) for begin, end in pairwise(self._bounds.tolist())]
        )
        seen = self._prefixes[starts]
        counts = np.bincount(seen[seen >= 0], minlength=len(self._paths))
        numbers = sorted((self._number[path] for path in self._open), key=lambda number: (-counts[number], number))
        return [self._paths[number] for number in numbers[:_CANDIDATES]]

    def _steps(self, lengths: np.ndarray) -> np.ndarray:
        """Count the steps over all texts ``[trees]``; a step at t accepts ``lengths[:, t]`` tokens after its root."""
        at, ends = np.repeat(self._bounds[None, :-1], len(lengths), axis=0), self._bounds[1:]
        rows = np.arange(len(lengths))[:, None]
        steps = np.zeros(len(lengths), dtype=np.int64)
        while (running := at < ends).any():
            steps += running.sum(1)
            after = at + 1 + lengths[rows, np.minimum(at, len(self._lengths) - 1)]
            at = np.where(running, np.minimum(after, ends), at)
        return steps


def optimal_order(traces: Sequence[RankTrace], nodes: int, depth: int | None = None) -> list[Path]:
    """Return up to ``nodes`` paths in the order in which to add them: each prefix is the best tree of its size.

    If ``depth`` is given, paths are at most that long.
    """
    builder = _TreeBuilder(traces, depth)
    while len(builder.order) < nodes and builder.add_path():
        pass
    return builder.order


def optimal_tree(traces: Sequence[RankTrace], nodes: int) -> Topology:
    """Return the best static tree of at most ``nodes`` nodes (fewer if the traces have fewer paths)."""
    order = optimal_order(traces, nodes)
    return Topology.of(order) if order else Topology.root_only()


def is_nested(trees: Sequence[Topology]) -> bool:
    """Whether each tree contains the one before it."""
    return all(set(small.paths) <= set(large.paths) for small, large in pairwise(trees))
