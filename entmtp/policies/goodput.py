"""Goodput policy: at every step, the tree with which the text gains most tokens per millisecond.

That is the tree with the largest ``gain - rate * cost`` (:mod:`entmtp.policies.rate`). Its gain is predicted from the
signals of this step.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from entmtp.policies.acceptance_bias import AcceptanceBias, BiasedPolicy, StepInputs
from entmtp.policies.base import Choice
from entmtp.policies.envelope import Envelope, upper_envelope
from entmtp.policies.policy_cost import PolicyCost, cached_at
from entmtp.policies.rate import best_choices
from entmtp.policies.registry import PolicyInputs, register_policy
from entmtp.policies.signals import Signals
from entmtp.policies.step_cost import TYPICAL_CONTEXT
from entmtp.trees.bank import MAX_NODES
from entmtp.trees.batch import FILLED_SIZES
from entmtp.trees.predictor import Predictor
from entmtp.trees.topology import Topology

SIZES = (0, 1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32, 48, 63)
"""Sizes of candidate trees. Where trees are padded, they are those that fill the padding instead."""


def candidates(predictor: Predictor, sizes: Sequence[int] = SIZES) -> list[Topology]:
    """List the candidate trees: at each centre of the predictor the likeliest paths of each depth, in each size."""
    found: dict[tuple[tuple[int, ...], ...], Topology] = {}
    deepest = max(map(len, predictor.paths), default=0)
    for row in predictor.table:
        # Among equals, parents come before children, so that every prefix of the order is a tree.
        order = sorted(range(len(row)), key=lambda at: (-row[at], len(predictor.paths[at]), predictor.paths[at]))
        for depth in range(1, deepest + 1):
            paths = [predictor.paths[at] for at in order if len(predictor.paths[at]) <= depth]
            for size in sizes:
                tree = Topology.of(paths[:size]) if size and paths else Topology.root_only()
                found.setdefault(tree.paths, tree)
    return list(found.values())


@dataclass(frozen=True)
class _Price:
    """Costs and rate of the steps of a batch, by its requests' limits and mean context.

    Attributes:
        costs: milliseconds of each shape ``[shapes]``; infinite if it is larger than every limit.
        rate: tokens per millisecond that a schedule reaches.
    """

    costs: np.ndarray
    rate: float


class GoodputPolicy(BiasedPolicy):
    """Chooses trees by expected gain and cost.

    The requests of a step are verified as one batch. It is padded to the widest tree, and drafted to the depth of the
    deepest. So one *shape* (a number of nodes and levels) is chosen for all requests. Each request takes its own best
    tree within the shape. Plain decoding is one of the shapes, so the choice is never worse than plain decoding.
    """

    def __init__(self, predictor: Predictor, cost: PolicyCost, entropy_window: int) -> None:
        super().__init__(cost, entropy_window)
        self.predictor = predictor
        self.trees = candidates(predictor, FILLED_SIZES if cost.padded else SIZES)
        self._gains = predictor.gains(self.trees)
        sizes = sorted({(tree.nodes, tree.max_depth) for tree in self.trees})
        # Trees within each shape [shapes, trees]. The shape's cost is that of its largest tree.
        self._within = np.array(
            [[tree.nodes <= nodes and tree.max_depth <= depth for tree in self.trees] for nodes, depth in sizes]
        )
        by_size = {(tree.nodes, tree.max_depth): tree for tree in self.trees}
        self._shapes = [by_size[size] for size in sizes]  # plain decoding first
        self._plain = self.trees.index(Topology.root_only())
        self._shape_of = np.array([sizes.index((tree.nodes, tree.max_depth)) for tree in self.trees])
        self._by_shape = np.argsort(self._shape_of, kind="stable")
        self._starts = np.searchsorted(self._shape_of[self._by_shape], np.arange(len(sizes)))
        nodes, depths = (sorted(set(each)) for each in zip(*sizes, strict=True))
        self._nodes = np.array([tree.nodes for tree in self.trees])
        self._sizes, self.max_nodes = nodes, nodes[-1]
        self._grid = len(nodes), len(depths)
        self._cells = np.array([nodes.index(size) * len(depths) + depths.index(depth) for size, depth in sizes])
        self._max_gains = self._gains_within(nodes[-1])
        self._price = cached_at(cost, self._compute_price)
        self._single = cached_at(cost, self._best_by_score)

    def rate(self, limits: Sequence[int] = (MAX_NODES,), context: int = TYPICAL_CONTEXT) -> float:
        """Tokens per millisecond that a schedule reaches for a batch of requests with these limits."""
        return self._price(self._rounded_limits(limits), context).rate

    def choose_trees(self, inputs: StepInputs) -> list[Choice]:
        scores = self.scores(inputs.signals, inputs.biases)
        chosen = self.best_trees(scores, inputs.limits, inputs.context)
        for score, bias, at in zip(scores, inputs.biases, chosen, strict=True):
            if self.trees[at].nodes:
                bias.expected = float(self.predictor.centre_weights(score) @ self._gains[:, at]) - 1
        return [Choice(self.trees[at]) for at in chosen]

    def scores(self, signals: Sequence[Signals], biases: Sequence[AcceptanceBias]) -> list[float]:
        """Predictor scores: the higher, the likelier is the acceptance of the request's next guesses."""
        return [
            self.predictor.score_of(signal.values(self.predictor.features)) + bias.log_odds
            for signal, bias in zip(signals, biases, strict=True)
        ]

    def best_trees(self, scores: Sequence[float], limits: Sequence[int], context: int = TYPICAL_CONTEXT) -> list[int]:
        """Choose among ``trees`` for each request of a step, by scores and within limits; returns their indices."""
        if len(scores) == 1:  # the tree of a single request is its own shape
            (limit,) = self._rounded_limits(limits)
            return [self._single(limit, context).at(scores[0])]
        price = self._price(self._rounded_limits(limits), context)
        centre_weights = self.predictor.centre_weights_of(scores)
        # Upper bound: between two centres no tree gains more than the best tree at each. If plain decoding wins against
        # this bound, it is the best choice.
        if not (centre_weights.sum(0) @ self._max_gains - price.rate * price.costs).argmax():
            return [self._plain] * len(scores)
        expected = np.where(
            self._nodes <= np.array(limits)[:, None], centre_weights @ self._gains, -np.inf
        )  # [batch, trees]
        shape = int((self._best_within(expected).sum(0) - price.rate * price.costs).argmax())
        best: list[int] = np.where(self._within[shape], expected, -np.inf).argmax(1).tolist()
        return best

    def _rounded_limits(self, limits: Sequence[int]) -> tuple[int, ...]:
        """Key of a price: the limits in increasing order, each rounded down to the size of a tree."""
        return tuple(sorted(self._sizes[bisect_right(self._sizes, limit) - 1] for limit in limits))

    def _best_by_score(self, limit: int, context: int) -> Envelope:
        """Best tree of a single request, by its score."""
        price, allowed = self._price((limit,), context), np.flatnonzero(self._nodes <= limit)
        values = self._gains[:, allowed] - price.rate * price.costs[self._shape_of[allowed]]
        found = upper_envelope(self.predictor.centres, values)
        return Envelope(found.breaks, allowed[found.lines].tolist())

    def _best_within(self, expected: np.ndarray) -> np.ndarray:
        """Gain of the best tree within each shape ``[n, shapes]``, from all trees' gains ``[n, trees]``."""
        cells = np.full((len(expected), self._grid[0] * self._grid[1]), -np.inf)
        cells[:, self._cells] = np.maximum.reduceat(expected[:, self._by_shape], self._starts, axis=1)
        # A shape contains all trees that are smaller and shallower.
        grid = np.maximum.accumulate(np.maximum.accumulate(cells.reshape(-1, *self._grid), axis=1), axis=2)
        best: np.ndarray = grid.reshape(len(expected), -1)[:, self._cells]
        return best

    def _gains_within(self, limit: int) -> np.ndarray:
        """Gains ``[centres, shapes]`` of the best tree of at most ``limit`` nodes within each shape."""
        return self._best_within(np.where(self._nodes <= limit, self._gains, -np.inf))

    def _compute_price(self, limits: tuple[int, ...], context: int) -> _Price:
        cost = self.cost.of_batch(len(limits), context)
        costs = np.array([cost(shape) if shape.nodes <= limits[-1] else np.inf for shape in self._shapes])
        shares = np.array(self.predictor.shares)
        if len(limits) == 1:
            gains = self._gains_within(*limits)
            _, rate = best_choices(list(gains), [costs] * len(gains), shares)
        else:
            # Requests in different states share a shape, so it can't depend on the state of one.
            gained = {limit: shares @ self._gains_within(limit) for limit in set(limits)}
            rate = float((sum(map(gained.__getitem__, limits)) / costs).max())
        return _Price(costs, rate)


@register_policy("goodput")
def _goodput(inputs: PolicyInputs) -> GoodputPolicy:
    return GoodputPolicy(inputs.needs_bank().predictor, inputs.needs_cost(), inputs.entropy_window)
