"""A yardstick that can be reached: the best policy in a world in which the heads' calibrated chances are true.

Hindsight knows which guesses are right; no policy can. The most that one can know before it verifies is each guess's
chance. So take the heads' calibrated chances (:mod:`entmtp.trees.probability_calibration`) for the truth. A step whose
guesses' paths have chances ``P(v)`` then gains ``1 + sum of P(v) over its tree's nodes`` tokens in expectation, and the
best policy takes, at every step, the tree with the largest ``gain - rate * cost``, the rate being what all steps
together reach (a renewal-reward problem, Dinkelbach 1967; :mod:`entmtp.policies.rate`). Of a depth and a size the best
tree has the likeliest paths, so the best of all trees is found, as long as more levels never take less time.
Expectations are sums over paths: nothing is drawn, and there is no seed.

In the same world hindsight knows each step's right path and verifies its beginning alone.

Limits: where a step starts doesn't depend on how far the steps before it came; trees have the likeliest
:data:`MAX_PATHS` paths, and hindsight's right path goes on from one of them by a token at most; the best policy sees
every level's chances before it pays for any of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from entmtp.heads.interface import Expansion
from entmtp.policies.dynamic import MAX_EXPANDED_NODES
from entmtp.policies.rate import Cost, best_choices
from entmtp.trees.probability_calibration import ProbabilityCalibration
from entmtp.trees.topology import Path, Topology

MAX_PATHS = MAX_EXPANDED_NODES
"""Nodes of the largest tree, as of a grown one."""


@dataclass(frozen=True)
class Outlook:
    """What is known at a step before anything is verified.

    Attributes:
        paths: the chance that the right path begins with a path. With a path come its beginnings, none of which is less
            likely; its continuations are together at most as likely.
        reach: the chance that the right path is guessed to depth 1, 2, ...: by ``paths``, or by others that continue
            one of them by a token.
    """

    paths: Mapping[Path, float]
    reach: Sequence[float]


@dataclass(frozen=True)
class Expected:
    """What a policy expects of each step: tokens, the root counted, and milliseconds, both ``[steps]``."""

    tokens: np.ndarray
    ms: np.ndarray


def outlook(expansion: Expansion, chances: ProbabilityCalibration, also: Topology) -> Outlook:
    """Runs every level of the heads; keeps the likeliest :data:`MAX_PATHS` paths, and those of the tree ``also``.

    Guesses whose chances add up to more than their parent's share its chance in proportion.
    """
    known: dict[Path, float] = {}
    reach: list[float] = []
    kept: dict[Path, int] = {(): 0}  # the last level's, with their numbers
    for depth in range(min(expansion.num_heads, len(chances.slope))):
        tokens, log_probs = expansion.next_level(list(kept.values()), len(chances.follow[depth]))
        count = tokens.shape[1]
        numbers: dict[Path, int] = {}
        for row, (path, values) in enumerate(zip(kept, log_probs.tolist(), strict=True)):
            each = [chances.probability(depth, value) for value in values]
            part = known.get(path, 1.0) / max(1.0, sum(each))
            for rank, chance in enumerate(each):
                known[*path, rank] = part * chance
                numbers[*path, rank] = row * count + rank
        reach.append(sum(known[path] for path in numbers))
        # Equals stay in the order in which they came, beginnings first.
        chosen = {*sorted(known, key=lambda path: -known[path])[:MAX_PATHS], *also.paths}
        known = {path: chance for path, chance in known.items() if path in chosen}
        kept = {path: number for path, number in numbers.items() if path in known}
        if not kept:
            break
    return Outlook(known, reach)


def expected_tokens(seen: Outlook, topology: Topology) -> float:
    """Tokens that a step with this tree gains in expectation, root included."""
    return 1 + sum(seen.paths[path] for path in topology.paths)


def known_chances(outlooks: Sequence[Outlook], cost: Cost) -> Expected:
    """What the best policy expects that knows every step's outlook; steps count alike."""
    price = _prices(cost)
    gains, costs = zip(*(_choices(seen, price) for seen in outlooks), strict=True)
    return _best(gains, costs, np.ones(len(outlooks)))


def known_outcomes(outlooks: Sequence[Outlook], cost: Cost) -> Expected:
    """What hindsight expects where the outlooks are true: it verifies the right path's beginning, as far as it pays."""
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
    """The chance that the right path is guessed to depth 0, 1, ... and no farther ``[depths + 1]``."""
    return np.maximum(0.0, -np.diff([1.0, *seen.reach, 0.0]))


def _best(gains: Sequence[np.ndarray], costs: Sequence[np.ndarray], shares: np.ndarray) -> Expected:
    chosen, _ = best_choices(gains, costs, shares)
    return Expected(
        np.array([gain[at] for gain, at in zip(gains, chosen, strict=True)]),
        np.array([cost[at] for cost, at in zip(costs, chosen, strict=True)]),
    )


def _choices(seen: Outlook, price: Callable[[int, int], float]) -> tuple[np.ndarray, np.ndarray]:
    """Gains and costs of the best tree of each depth and size, plain decoding first."""
    # A path never comes after its continuations, so that every beginning of the order is a tree.
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
    """Milliseconds of a step with a tree of so many nodes and levels; they depend on nothing else of it."""
    return cache(lambda nodes, depth: cost(_tree(nodes, depth)))


def _tree(nodes: int, depth: int) -> Topology:
    if not nodes:
        return Topology.root_only()
    chain = [(0,) * at for at in range(1, depth + 1)]
    return Topology.of([*chain, *((rank,) for rank in range(1, 1 + nodes - depth))])
