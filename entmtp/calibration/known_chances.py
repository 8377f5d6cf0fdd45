"""Attainable yardstick: the best policy if the heads' calibrated chances are the true probabilities.

Hindsight knows which guesses are right; no policy can. The most that a policy can know before it verifies is each
guess's probability. So this yardstick takes the heads' calibrated chances as true
(:mod:`entmtp.trees.probability_calibration`). Let ``P(v)`` be the chance of the path to node v. A step then gains
``1 + sum of P(v) over its tree's nodes`` tokens in expectation. The best policy takes at every step the tree with the
largest ``gain - rate * cost``, where ``rate`` is what all steps together reach (a renewal-reward problem, Dinkelbach
1967; :mod:`entmtp.policies.rate`). For a given depth and size the best tree has the likeliest paths. So the best of all
trees is found, as long as more levels never take less time. Expectations are sums over paths: nothing is sampled.

Under the same assumption hindsight knows each step's right path, and verifies only a prefix of it.

Limits:

- Where a step starts does not depend on how far the steps before it came.
- Trees have the likeliest :data:`MAX_PATHS` paths. Hindsight's right path extends one of them by at most one token.
- The best policy knows every level's chances before it pays for any of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from entmtp.heads.interface import Expansion
from entmtp.policies.dynamic import MAX_EXPANDED_NODES
from entmtp.policies.estimated_odds import estimated_odds
from entmtp.policies.rate import Cost, best_choices
from entmtp.trees.probability_calibration import ProbabilityCalibration
from entmtp.trees.topology import Path, Topology

MAX_PATHS = MAX_EXPANDED_NODES
"""Nodes of the largest tree, as in the dynamic policy."""


@dataclass(frozen=True)
class Outlook:
    """Calibrated chances of a step's paths, known before anything is verified.

    Attributes:
        paths: chance of each path to be a prefix of the right path. Every prefix of a path is included, and is at least
            as likely. The chances of a path's continuations add up to at most its own.
        reach: chance that the right path is drafted to depth 1, 2, ...: by ``paths``, or by paths that extend one of
            them by one token.
    """

    paths: Mapping[Path, float]
    reach: Sequence[float]


@dataclass(frozen=True)
class Expected:
    """Expected tokens (root included) and milliseconds of each step, both ``[steps]``."""

    tokens: np.ndarray
    ms: np.ndarray


def outlook(expansion: Expansion, chances: ProbabilityCalibration, also: Topology) -> Outlook:
    """Run every level of the heads; return the likeliest :data:`MAX_PATHS` paths, and those of the tree ``also``.

    If the chances of a node's guesses add up to more than 1, they are scaled down to 1.
    """
    known: dict[Path, float] = {}
    reach: list[float] = []
    frontier: dict[Path, int] = {(): 0}  # nodes of the last level, with their numbers
    for depth in range(min(expansion.num_heads, len(chances.slope))):
        tokens, log_probs = expansion.next_level(list(frontier.values()), len(chances.follow[depth]))
        estimated, count = estimated_odds(expansion, chances, len(frontier)), tokens.shape[1]
        numbers: dict[Path, int] = {}
        for row, (path, values, odds) in enumerate(zip(frontier, log_probs.tolist(), estimated, strict=True)):
            each = chances.probabilities(depth, values, estimated_odds=odds)
            part = known.get(path, 1.0) / max(1.0, sum(each))
            for rank, chance in enumerate(each):
                known[*path, rank] = part * chance
                numbers[*path, rank] = row * count + rank
        reach.append(sum(known[path] for path in numbers))
        # The sort is stable: among equals, prefixes come first.
        chosen = {*sorted(known, key=lambda path: -known[path])[:MAX_PATHS], *also.paths}
        known = {path: chance for path, chance in known.items() if path in chosen}
        frontier = {path: number for path, number in numbers.items() if path in known}
        if not frontier:
            break
    return Outlook(known, reach)


def expected_tokens(seen: Outlook, topology: Topology) -> float:
    """Expected tokens of a step with this tree, root included."""
    return 1 + sum(seen.paths[path] for path in topology.paths)


def known_chances(outlooks: Sequence[Outlook], cost: Cost) -> Expected:
    """Expectation of the best policy that knows every step's outlook; all steps have the same weight."""
    price = _prices(cost)
    gains, costs = zip(*(_choices(seen, price) for seen in outlooks), strict=True)
    return _best(gains, costs, np.ones(len(outlooks)))


def known_outcomes(outlooks: Sequence[Outlook], cost: Cost) -> Expected:
    """Expectation of hindsight if the outlooks are true: it verifies the right path, as far as its cost allows."""
    price = _prices(cost)
    ends = [_ends(seen) for seen in outlooks]
    lengths = [length for shares in ends for length in range(len(shares))]
    gains = [np.arange(1.0, length + 2) for length in lengths]
    costs = [np.array([price(at, at) for at in range(length + 1)]) for length in lengths]
    shares = np.concatenate(ends)
    best = _best(gains, costs, shares)
    first = np.cumsum([0, *map(len, ends[:-1])])
    return Expected(np.add.reduceat(shares * best.tokens, first), np.add.reduceat(shares * best.ms, first))


def _ends(seen: Outlook) -> np.ndarray:
    """Chance that the right path is drafted to exactly depth 0, 1, ... ``[depths + 1]``."""
    return np.maximum(0.0, -np.diff([1.0, *seen.reach, 0.0]))


def _best(gains: Sequence[np.ndarray], costs: Sequence[np.ndarray], shares: np.ndarray) -> Expected:
    chosen, _ = best_choices(gains, costs, shares)
    return Expected(
        np.array([gain[at] for gain, at in zip(gains, chosen, strict=True)]),
        np.array([cost[at] for cost, at in zip(costs, chosen, strict=True)]),
    )


def _choices(seen: Outlook, price: Callable[[int, int], float]) -> tuple[np.ndarray, np.ndarray]:
    """Gains and costs of the best tree of each depth and size, plain decoding first."""
    # A path never comes after its continuations, so that every prefix of the order is a tree.
    order = sorted(seen.paths, key=lambda path: (-seen.paths[path], len(path)))
    gains, costs = [1.0], [price(0, 0)]
    for depth in range(1, max(map(len, order), default=0) + 1):
        gain, deepest = 1.0, 0
        for nodes, path in enumerate([path for path in order if len(path) <= depth][:MAX_PATHS], start=1):
            gain, deepest = gain + seen.paths[path], max(deepest, len(path))
            gains.append(gain)
            costs.append(price(nodes, deepest))
    return np.array(gains), np.array(costs)


def _prices(cost: Cost) -> Callable[[int, int], float]:
    """Return a cached function: milliseconds of a step by the nodes and depth of its tree."""
    return cache(lambda nodes, depth: cost(_tree(nodes, depth)))


def _tree(nodes: int, depth: int) -> Topology:
    if not nodes:
        return Topology.root_only()
    chain = [(0,) * at for at in range(1, depth + 1)]
    return Topology.of([*chain, *((rank,) for rank in range(1, 1 + nodes - depth))])
