"""The dynamic policy: a step's tree is built while the heads guess, from what they say of this very step.

A millisecond is worth ``rate`` tokens, what the schedule reaches. A node pays if its chance of being accepted is more
than the worth of the time that verifying it takes; a level of heads is run if the nodes that it can be expected to
find pay for it, decided before it runs. Goes beyond the paper, whose trees are chosen before the heads run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from entmtp.heads.growth import Growth
from entmtp.scheduling.cost import StepCost
from entmtp.scheduling.goodput import GoodputPolicy
from entmtp.scheduling.signals import Signals
from entmtp.trees.chances import Chances
from entmtp.trees.predictor import Predictor
from entmtp.trees.topology import Path, Topology
from entmtp.trees.trace import RANKED

MAX_NODES = 63


@dataclass(frozen=True)
class Grown:
    """A tree with its tokens, in the topology's order, the root's not among them."""

    topology: Topology
    tokens: list[int]


PLAIN = Grown(Topology.root_only(), [])


@dataclass(frozen=True)
class _Node:
    path: Path
    token: int
    chance: float
    number: int


class DynamicPolicy:
    """Builds a tree per step; nothing is remembered of a request but its moving averages."""

    def __init__(self, predictor: Predictor, chances: Chances, cost: StepCost, entropy_window: int) -> None:
        self.chances = chances
        self.entropy_window = entropy_window
        # Whether to draft at all is decided by the signals that are there before the heads run.
        self._before = GoodputPolicy(predictor, cost, entropy_window)
        self.rate = self._before.rate
        trees = [PLAIN.topology, *(Topology.of([(rank,) for rank in range(size)]) for size in range(1, MAX_NODES + 1))]
        verify = np.array([cost(tree) - cost.draft(tree) for tree in trees])
        self._worth = self.rate * (verify - verify[0])
        chains = [Topology.of([(0,) * at for at in range(1, depth + 1)]) for depth in range(1, len(chances.slope) + 1)]
        drafts = np.array([0.0, *(cost.draft(chain) for chain in chains)])
        self._level_worth = self.rate * np.diff(drafts)
        self._node_worth = float(self._worth[8] / 8)

    def start(self) -> None:
        """Nothing to remember."""

    def grow(self, signals: Signals, growth_of: Callable[[], Growth]) -> Grown:
        """This step's tree; ``growth_of`` begins to draft, if it is called at all."""
        if not self._before.choose(signals, None).nodes:
            return PLAIN
        return self._best(self._guessed(growth_of()))

    def _guessed(self, growth: Growth) -> list[_Node]:
        """All guesses of the levels that are worth running."""
        found: list[_Node] = []
        parents = [_Node((), 0, 1.0, 0)]
        for depth in range(min(growth.num_heads, len(self.chances.slope))):
            parents = [node for node in parents if node.chance * self.chances.follow[depth][0] > self._node_worth]
            if depth and self._expected(parents, depth) <= self._level_worth[depth]:
                break
            tokens, log_probs = growth.next([node.number for node in parents], RANKED)
            children = self._children(parents, depth, tokens.tolist(), log_probs.tolist())
            found += children
            parents = children
        return found

    def _expected(self, parents: Sequence[_Node], depth: int) -> float:
        """Tokens that a level can be expected to add, less what verifying its nodes is worth."""
        return sum(
            max(0.0, node.chance * follow - self._node_worth)
            for node in parents
            for follow in self.chances.follow[depth][:RANKED]
        )

    def _children(
        self, parents: Sequence[_Node], depth: int, tokens: list[list[int]], log_probs: list[list[float]]
    ) -> list[_Node]:
        return [
            _Node((*parent.path, rank), token, parent.chance * self.chances.of(depth, log_prob), row * RANKED + rank)
            for row, parent in enumerate(parents)
            for rank, (token, log_prob) in enumerate(zip(tokens[row], log_probs[row], strict=True))
        ]

    def _best(self, guessed: Sequence[_Node]) -> Grown:
        """The likeliest nodes, as many as pay. A parent is at least as likely as its children and comes before them."""
        likeliest = sorted(guessed, key=lambda node: (-node.chance, len(node.path), node.path))[:MAX_NODES]
        gains = np.concatenate([[0.0], np.cumsum([node.chance for node in likeliest])])
        kept = likeliest[: int((gains - self._worth[: len(gains)]).argmax())]
        if not kept:
            return PLAIN
        token_of = {node.path: node.token for node in kept}
        topology = Topology.of(token_of)
        return Grown(topology, [token_of[path] for path in topology.paths])
