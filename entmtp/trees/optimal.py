"""Optimal trees from rank traces: the whole Pareto frontier, nodes against expected accepted length, in one sort.

The expected accepted length of a topology is the sum over its nodes of the probability that the true ranks start with
that node's path. Probabilities never rise along a path, so the n most probable paths are prefix-closed and no tree of
n nodes does better. Steps start more often where the text is hard, so probabilities are taken over the positions that
the tree itself visits, found by repeating: sort, replay, reweight. On few texts this may circle instead of settling, so
the round whose tree took the fewest steps counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from entmtp.trees.replay import accepted_lengths, visits
from entmtp.trees.topology import Path, Topology
from entmtp.trees.trace import RankTrace

MAX_RANK = 32
"""Ranks beyond this are never worth a node in a tree of at most 64."""

_ROUNDS = 6


def most_probable_paths(rows: np.ndarray, count: int, depth: int | None = None) -> list[tuple[Path, float]]:
    """The ``count`` most frequent rank prefixes of ``rows [positions, heads]`` with their probabilities.

    Prefixes longer than ``depth`` don't count, if it is given.
    """
    prefixes: Counter[Path] = Counter()
    for row in rows[:, :depth].tolist():
        for length, rank in enumerate(row, start=1):
            if rank >= MAX_RANK:
                break
            prefixes[tuple(row[:length])] += 1
    # A parent is at least as frequent as its child, and comes first among equals because it is shorter.
    ordered = sorted(prefixes.items(), key=lambda item: (-item[1], len(item[0]), item[0]))[:count]
    return [(path, number / len(rows)) for path, number in ordered]


def optimal_order(traces: Sequence[RankTrace], nodes: int, depth: int | None = None) -> list[Path]:
    """Paths in the order in which to add them, up to ``nodes``, for steps that start where such trees put them.

    None is longer than ``depth``, if it is given.
    """
    starts = [np.arange(len(trace)) for trace in traces]
    order: list[Path] = []
    best: list[Path] = []
    fewest = sum(map(len, traces))
    for _ in range(_ROUNDS):
        rows = np.concatenate([trace.ranks.numpy()[at] for trace, at in zip(traces, starts, strict=True)])
        found = [path for path, _ in most_probable_paths(rows, nodes, depth)]
        if found == order or not found:
            break
        order = found
        tree = Topology.of(order)
        starts = [visits(accepted_lengths(trace, tree)) for trace in traces]
        # Among equals the later round, which is nearer to settling.
        if (steps := sum(map(len, starts))) <= fewest:
            best, fewest = order, steps
    return best


def optimal_tree(traces: Sequence[RankTrace], nodes: int) -> Topology:
    """The best static tree of at most ``nodes`` nodes (fewer if the traces know no more paths)."""
    order = optimal_order(traces, nodes)
    return Topology.of(order, name=f"n{len(order)}") if order else Topology.root_only()


def is_nested(trees: Sequence[Topology]) -> bool:
    """Whether each tree holds the one before it."""
    return all(set(small.paths) <= set(large.paths) for small, large in pairwise(trees))
