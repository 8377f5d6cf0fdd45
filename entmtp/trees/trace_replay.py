"""Replay of trees, schedules and perfect hindsight on a rank trace, without the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from entmtp.trees.topology import Path, Topology
from entmtp.trees.trace import RankTrace


def accepted_length(topology: Topology, ranks: Sequence[int]) -> int:
    """Length of the longest prefix of the true ``ranks`` that is a path of the tree."""
    length = 0
    while length < len(ranks) and tuple(ranks[: length + 1]) in topology.index:
        length += 1
    return length


def accepted_lengths(trace: RankTrace, topology: Topology) -> np.ndarray:
    """Accepted tokens (without the root) of a step that starts at each position ``[positions]`` int64."""
    return np.array([accepted_length(topology, row) for row in trace.ranks.tolist()], dtype=np.int64)


def accepted_of_each(ranks: np.ndarray, topologies: Sequence[Topology]) -> np.ndarray:
    """:func:`accepted_lengths` ``[topologies, positions]`` of many trees at true ``ranks [positions, heads]``."""
    number: dict[Path, int] = {}
    prefixes = np.array(
        [[number.setdefault(tuple(row[: end + 1]), len(number)) for end in range(len(row))] for row in ranks.tolist()]
    )
    members = np.zeros((len(topologies), len(number)), dtype=np.bool_)
    for member, topology in zip(members, topologies, strict=True):
        member[[number[path] for path in topology.paths if path in number]] = True
    # A tree contains every prefix of its paths, so its prefixes are the first ones of a row.
    return np.stack([member[prefixes].sum(1) for member in members])


def visits(lengths: np.ndarray) -> np.ndarray:
    """Positions at which steps start; a step at t accepts ``lengths[t]`` tokens after its root."""
    starts, at = [], 0
    while at < len(lengths):
        starts.append(at)
        at += 1 + int(lengths[at])
    return np.array(starts, dtype=np.int64)


def static_tau(traces: Sequence[RankTrace], topology: Topology) -> float:
    """Tokens per step, root included, of a static tree over whole texts."""
    steps = sum(len(visits(accepted_lengths(trace, topology))) for trace in traces)
    return sum(len(trace) for trace in traces) / steps


def best_schedule(
    trace: RankTrace, topologies: Sequence[Topology], cost: Callable[[Topology], float]
) -> tuple[dict[int, Topology], float]:
    """Find the fastest schedule through the text with only ``topologies``, by dynamic programming over positions.

    ``time[t] = min over trees T of cost(T) + time[t + 1 + accepted_T(t)]``. Returns the tree of every position (a step
    may start at any of them) and the time from the first, in the unit of ``cost``.
    """
    size = len(trace)
    lengths = accepted_of_each(trace.ranks.numpy(), topologies)
    costs = np.array([cost(topology) for topology in topologies])
    time = np.zeros(size + 1)
    chosen = np.zeros(size, dtype=np.int64)
    for at in range(size - 1, -1, -1):
        ways = costs + time[np.minimum(at + 1 + lengths[:, at], size)]
        chosen[at] = ways.argmin()
        time[at] = ways[chosen[at]]
    return {at: topologies[number] for at, number in enumerate(chosen.tolist())}, float(time[0])


def right_path_schedule(
    trace: RankTrace, cost: Callable[[Topology], float], ranks: int
) -> tuple[dict[int, Topology], float]:
    """Find the fastest schedule in hindsight: every step verifies only a prefix of the right path.

    It is the upper bound of what drafting can gain, as a tree with wrong guesses costs more. Algorithm and result are
    those of :func:`best_schedule`. A prefix is a candidate if each token is among the first ``ranks`` guesses.
    """
    size = len(trace)
    time = np.zeros(size + 1)
    schedule: dict[int, Topology] = {}
    rows = trace.ranks.tolist()
    for at in range(size - 1, -1, -1):
        trees = [Topology.root_only()]
        for depth, rank in enumerate(rows[at], start=1):
            if rank >= ranks:  # a miss too
                break
            trees.append(Topology.of([rows[at][:length] for length in range(1, depth + 1)]))
        ways = [cost(tree) + time[min(at + 1 + tree.nodes, size)] for tree in trees]
        best = int(np.argmin(ways))
        schedule[at], time[at] = trees[best], ways[best]
    return schedule, float(time[0])
