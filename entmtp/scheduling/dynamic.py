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
from entmtp.scheduling.cost import PartedCost
from entmtp.scheduling.goodput import GoodputPolicy
from entmtp.scheduling.policies import BeginDraft, Choice, Policy
from entmtp.scheduling.signals import Signals
from entmtp.trees.chances import Chances
from entmtp.trees.predictor import Predictor
from entmtp.trees.topology import Path, Topology
from entmtp.trees.trace import RANKED

MAX_NODES = 63


PLAIN = Choice(Topology.root_only(), [])


@dataclass(frozen=True)
class _Node:
    path: Path
    token: int
    chance: float
    number: int


@dataclass(frozen=True)
class _Worth:
    """What a step's milliseconds are worth in tokens.

    Attributes:
        verify: ``[MAX_NODES + 1]`` of verifying trees of so many nodes for all ``batch`` requests.
        levels: ``[heads]`` of running each level of heads, one request's part of it.
    """

    verify: np.ndarray
    levels: np.ndarray
    batch: int

    @property
    def node(self) -> float:
        """Of one more node of one request."""
        return float(self.verify[8] / 8) / self.batch


class DynamicPolicy(Policy):
    """Builds a tree per step; nothing is remembered of a request but its moving averages."""

    def __init__(
        self, predictor: Predictor, chances: Chances, costs: Callable[[int], PartedCost], entropy_window: int
    ) -> None:
        self.chances = chances
        self.entropy_window = entropy_window
        self._costs = costs
        # Whether to draft at all is decided by the signals that are there before the heads run.
        self._before = GoodputPolicy(predictor, costs, entropy_window)
        self._priced: dict[int, _Worth] = {}

    def choose(self, signals: Sequence[Signals], states: Sequence[None], drafts: Sequence[BeginDraft]) -> list[Choice]:
        worth = self._worth(len(signals))
        before = self._before.best(signals)
        guessed = [
            self._guessed(begin(), worth) if tree.nodes else [] for begin, tree in zip(drafts, before, strict=True)
        ]
        return self._best(guessed, worth)

    def _worth(self, batch: int) -> _Worth:
        if batch not in self._priced:
            cost, rate = self._costs(batch), self._before.rate(batch)
            trees = [
                Topology.root_only(),
                *(Topology.of([(rank,) for rank in range(n)]) for n in range(1, MAX_NODES + 1)),
            ]
            verify = np.array([cost(tree) - cost.draft(tree) for tree in trees])
            depths = range(1, len(self.chances.slope) + 1)
            chains = [Topology.of([(0,) * at for at in range(1, depth + 1)]) for depth in depths]
            drafts = np.array([0.0, *(cost.draft(chain) for chain in chains)])
            self._priced[batch] = _Worth(rate * (verify - verify[0]), rate * np.diff(drafts) / batch, batch)
        return self._priced[batch]

    def _guessed(self, growth: Growth, worth: _Worth) -> list[_Node]:
        """All guesses of the levels that are worth running."""
        found: list[_Node] = []
        parents = [_Node((), 0, 1.0, 0)]
        for depth in range(min(growth.num_heads, len(self.chances.slope))):
            parents = [node for node in parents if node.chance * self.chances.follow[depth][0] > worth.node]
            if depth and self._expected(parents, depth, worth.node) <= worth.levels[depth]:
                break
            tokens, log_probs = growth.next([node.number for node in parents], RANKED)
            children = self._children(parents, depth, tokens.tolist(), log_probs.tolist())
            found += children
            parents = children
        return found

    def _expected(self, parents: Sequence[_Node], depth: int, node_worth: float) -> float:
        """Tokens that a level can be expected to add, less what verifying its nodes is worth."""
        return sum(
            max(0.0, node.chance * follow - node_worth)
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

    def _best(self, guessed: Sequence[Sequence[_Node]], worth: _Worth) -> list[Choice]:
        """The likeliest nodes of each request, as many as pay for the width that all trees are padded to.

        A parent is at least as likely as its children and comes before them.
        """
        likeliest = [
            sorted(its, key=lambda node: (-node.chance, len(node.path), node.path))[:MAX_NODES] for its in guessed
        ]
        widest = max(map(len, likeliest))
        gains = np.zeros(widest + 1)
        for its in likeliest:
            chances = np.zeros(widest)
            chances[: len(its)] = [node.chance for node in its]
            gains[1:] += chances.cumsum()
        width = int((gains - worth.verify[: widest + 1]).argmax())
        return [_grown(its[:width]) for its in likeliest]


def _grown(nodes: Sequence[_Node]) -> Choice:
    if not nodes:
        return PLAIN
    token_of = {node.path: node.token for node in nodes}
    topology = Topology.of(token_of)
    return Choice(topology, [token_of[path] for path in topology.paths])
