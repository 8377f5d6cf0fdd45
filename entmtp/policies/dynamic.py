"""Dynamic policy: expands each step's trees level by level while the heads draft, by the heads' own probabilities.

The token price of a millisecond is ``rate``, the tokens per millisecond that the schedule reaches. A node is added if
its chance of acceptance exceeds the token price of verifying it. A level of heads is run if the nodes that it is
expected to find exceed its token price; that is decided before it runs. The paper chooses trees before the heads run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np

from entmtp.heads.interface import Expansion
from entmtp.policies.acceptance_bias import BiasedPolicy, StepInputs
from entmtp.policies.base import Choice
from entmtp.policies.estimated_odds import estimated_odds
from entmtp.policies.goodput import GoodputPolicy
from entmtp.policies.policy_cost import PolicyCost, cached_at
from entmtp.policies.registry import PolicyInputs, register_policy
from entmtp.trees.predictor import Predictor
from entmtp.trees.probability_calibration import ProbabilityCalibration
from entmtp.trees.topology import Path, Topology

MAX_EXPANDED_NODES = 63
"""Nodes of the largest tree, whatever a request allows."""
MIN_PRICED_NODES = 8
"""Nodes of the smallest tree from which a node's price is computed; with fewer, measurement noise dominates."""
MIN_CHILDREN = 4
"""Minimum children that are drafted per node, even if nodes are expensive: confidence differs from step to step."""

ROOT_ONLY = Choice(Topology.root_only(), [])


class _Node(NamedTuple):
    """A drafted node: ``number`` is as in :class:`Expansion`, ``log_odds`` its request's acceptance bias."""

    request: int
    path: Path
    token: int
    chance: float
    number: int
    log_odds: float


@cache
def _flat_trees() -> list[Topology]:
    """Trees of 0, 1, ... ``MAX_EXPANDED_NODES`` nodes, all of them children of the root."""
    return [
        Topology.root_only(),
        *(Topology.of([(rank,) for rank in range(n)]) for n in range(1, MAX_EXPANDED_NODES + 1)),
    ]


@cache
def _chains(levels: int) -> list[Topology]:
    """Chains of 1, 2, ... ``levels`` nodes."""
    return [Topology.of([(0,) * at for at in range(1, depth + 1)]) for depth in range(1, levels + 1)]


@dataclass(frozen=True)
class _TokenPrices:
    """Token prices: a step's milliseconds times the rate in tokens per millisecond.

    Attributes:
        verify: price of verifying 0, 1, ... ``MAX_EXPANDED_NODES`` nodes of every request.
        levels: price of running each level of heads.
        node: price of verifying one more node of one request, averaged over the tree size where that is least. On a CPU
            that is a small tree. On a GPU, where the first node costs most, it is a large tree.
    """

    verify: list[float]
    levels: list[float]
    node: float


class DynamicPolicy(BiasedPolicy):
    """Expands one tree per request and step."""

    max_nodes = MAX_EXPANDED_NODES

    def __init__(
        self, predictor: Predictor, chances: ProbabilityCalibration, cost: PolicyCost, entropy_window: int
    ) -> None:
        super().__init__(cost, entropy_window)
        self.chances = chances
        # Whether to draft at all is decided by the signals that are known before the heads run.
        self._before = GoodputPolicy(predictor, cost, entropy_window)
        self._token_prices = cached_at(cost, self._compute_prices)

    def choose_trees(self, inputs: StepInputs) -> list[Choice]:
        signals, biases, context = inputs.signals, inputs.biases, inputs.context
        limits = [min(limit, MAX_EXPANDED_NODES) for limit in inputs.limits]
        before = self._before.best_trees(self._before.scores(signals, biases), limits, context)
        drafting = [request for request, tree in enumerate(before) if self._before.trees[tree].nodes]
        if not drafting:
            return [Choice(Topology.root_only())] * len(signals)  # as in plain decoding: there is nothing to draft
        prices = self._token_prices(tuple(sorted(limits)), context)
        roots = [
            _Node(request, (), 0, 1.0, number, biases[request].log_odds) for number, request in enumerate(drafting)
        ]
        guesses = _by_request(self._expand(inputs.begin(drafting), roots, prices, limits))
        chosen = self._select([guesses.get(request, []) for request in range(len(signals))], prices)
        for nodes, bias in zip(chosen, biases, strict=True):
            bias.expected = sum(node.chance for node in nodes) if nodes else None
        return [_to_choice(nodes) for nodes in chosen]

    def _compute_prices(self, limits: tuple[int, ...], context: int) -> _TokenPrices:
        batch = len(limits)
        cost, rate = self.cost.of_batch(batch, context), self._before.rate(limits, context)
        verify = rate * np.array([cost(tree) - cost.draft(tree) for tree in _flat_trees()])
        drafts = rate * np.array([0.0, *(cost.draft(chain) for chain in _chains(len(self.chances.slope)))])
        # Kernels may be slow for few tokens, so that a larger tree takes less time. That does not make nodes free.
        added = verify - np.minimum.accumulate(verify)
        node = float(min(added[MIN_PRICED_NODES:] / np.arange(MIN_PRICED_NODES, MAX_EXPANDED_NODES + 1))) / batch
        return _TokenPrices((verify - verify[0]).tolist(), np.diff(drafts).tolist(), node)

    def _expand(
        self, expansion: Expansion, roots: list[_Node], prices: _TokenPrices, limits: Sequence[int]
    ) -> list[_Node]:
        """Run the levels that exceed their token price; return each request's likeliest nodes, up to its limit.

        The nodes of a request are in the canonical order of its trees.
        """
        found: list[_Node] = []
        nodes = roots
        for depth in range(min(expansion.num_heads, len(self.chances.slope))):
            follow = self.chances.follow[depth]
            parents = [node for node in nodes if node.chance * follow[0] > prices.node]
            if not parents or (depth and self._expected_gain(parents, found, prices, limits) <= prices.levels[depth]):
                break
            likeliest = max(node.chance for node in parents)
            wanted = max(MIN_CHILDREN, sum(likeliest * chance > prices.node for chance in follow))
            allowed = max(limits[node.request] for node in parents)
            count = max(self.chances.fewest_guesses, min(wanted, allowed))
            tokens, log_probs = expansion.next_level([node.number for node in parents], count)
            estimated = estimated_odds(expansion, self.chances, len(parents))
            found += self._children(parents, depth, tokens.tolist(), log_probs.tolist(), estimated)
            found = _keep_likeliest(found, limits)
            nodes = [node for node in found if len(node.path) > depth]
        return found

    def _expected_gain(
        self, parents: Sequence[_Node], found: Sequence[_Node], prices: _TokenPrices, limits: Sequence[int]
    ) -> float:
        """Expected tokens that a level after ``parents`` adds, minus the token price of verifying its nodes.

        If a request's limit is reached, likelier nodes replace the least likely ones that were ``found``.
        """
        follow = self.chances.follow[len(parents[0].path)]
        own, gain = _by_request(found), 0.0
        for request, its in _by_request(parents).items():
            added = [node.chance * chance - prices.node for node in its for chance in follow]
            gain += sum(value for value in added if value > 0)
            if len(own[request]) + len(added) > limits[request]:
                present = [node.chance - prices.node for node in own[request]]
                ranked = sorted((value for value in (*present, *added) if value > 0), reverse=True)
                gain -= sum(ranked[limits[request] :])
        return gain

    def _children(
        self,
        parents: Sequence[_Node],
        depth: int,
        tokens: Sequence[Sequence[int]],
        log_probs: Sequence[Sequence[float]],
        estimated: Sequence[float | None],
    ) -> list[_Node]:
        """Nodes of the guesses ``tokens [parents][count]`` after ``parents``; ``estimated [parents]`` are log-odds."""
        probabilities, count = self.chances.probabilities, len(tokens[0])
        # Plain Python is faster: between two passes over all weights, numpy's own code and data leave the CPU's caches.
        return [
            _Node(
                node.request,
                (*node.path, rank),
                token,
                node.chance * chance,
                row * count + rank,
                node.log_odds,
            )
            for row, (node, its, values, odds) in enumerate(zip(parents, tokens, log_probs, estimated, strict=True))
            for rank, (token, chance) in enumerate(
                zip(its, probabilities(depth, values, node.log_odds, odds), strict=True)
            )
        ]

    def _select(self, guesses: Sequence[Sequence[_Node]], prices: _TokenPrices) -> list[list[_Node]]:
        """Select each request's likeliest nodes, up to the width of the padded batch with the largest net gain."""
        likeliest = [_likeliest(its) for its in guesses]
        best, width, gain = 0.0, 0, 0.0
        for at in range(max(map(len, likeliest))):
            gain += sum(its[at].chance for its in likeliest if at < len(its))
            if gain - prices.verify[at + 1] > best:
                best, width = gain - prices.verify[at + 1], at + 1
        return [its[:width] for its in likeliest]


def _by_request(nodes: Sequence[_Node]) -> dict[int, list[_Node]]:
    found: dict[int, list[_Node]] = {}
    for node in nodes:
        found.setdefault(node.request, []).append(node)
    return found


def _likeliest(nodes: Sequence[_Node]) -> list[_Node]:
    """Sort one request's nodes, likeliest first: each prefix is the best tree of its size.

    A parent is at least as likely as its children. Among equals the canonical order decides, in which it comes first.
    """
    return sorted(nodes, key=lambda node: -node.chance)


def _keep_likeliest(nodes: list[_Node], limits: Sequence[int]) -> list[_Node]:
    """Keep each request's likeliest nodes, up to its limit, in their given order."""
    if len(nodes) <= min(limits[node.request] for node in nodes):
        return nodes
    best = {request: _likeliest(its)[: limits[request]] for request, its in _by_request(nodes).items()}
    selected = {(node.request, node.path) for its in best.values() for node in its}
    return [node for node in nodes if (node.request, node.path) in selected]


def _to_choice(nodes: Sequence[_Node]) -> Choice:
    if not nodes:
        return ROOT_ONLY
    ordered = sorted(nodes, key=lambda node: (len(node.path), node.path))
    topology = Topology(tuple(node.path for node in ordered))
    return Choice(topology, [node.token for node in ordered])


@register_policy("dynamic", drafts=True)
def _dynamic(inputs: PolicyInputs) -> DynamicPolicy:
    bank = inputs.needs_bank()
    return DynamicPolicy(bank.predictor, bank.chances, inputs.needs_cost(), inputs.entropy_window)
