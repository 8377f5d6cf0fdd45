"""The dynamic policy: a step's trees are built while the heads guess, from what they say of this very step.

A millisecond is worth ``rate`` tokens, what the schedule reaches. A node pays if its chance of being accepted is more
than the worth of the time that verifying it takes; a level of heads is run if the nodes that it can be expected to
find pay for it, decided before it runs. Goes beyond the paper, whose trees are chosen before the heads run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch

from entmtp.heads.interface import Expansion
from entmtp.policies.acceptance_bias import AcceptanceBias
from entmtp.policies.base import BeginDraft, Choice, Policy
from entmtp.policies.goodput import PRICE_CACHE_SIZE, GoodputPolicy
from entmtp.policies.registry import PolicyInputs, register_policy
from entmtp.policies.signals import Signals
from entmtp.policies.step_cost import TreeCost, rounded_context
from entmtp.trees.predictor import Predictor
from entmtp.trees.probability_calibration import ProbabilityCalibration
from entmtp.trees.topology import Path, Topology

MAX_EXPANDED_NODES = 63
"""Nodes of the largest tree that it grows, whatever a request allows."""
SMALL = 8
"""Nodes of the smallest tree that is asked what a node costs: over fewer, noise in the measurement says too much."""
MIN_CHILDREN = 4
"""Guesses of a node that are looked at, however dear nodes are: how sure the heads are differs from step to step."""

PLAIN = Choice(Topology.root_only(), [])


class _Node(NamedTuple):
    """A guess; ``number`` as in :class:`Expansion`, ``shift`` its request's :class:`AcceptanceBias`."""

    request: int
    path: Path
    token: int
    chance: float
    number: int
    log_odds: float


@dataclass(frozen=True)
class _Worth:
    """What a step's milliseconds are worth in tokens.

    Attributes:
        verify: of verifying 0, 1, ... ``MAX_EXPANDED_NODES`` nodes of every request.
        levels: of running each level of heads.
        node: of verifying one more node of one request, on average over the trees where that is least: on a CPU small
            ones, on a GPU, where the first node costs most, large ones.
    """

    verify: list[float]
    levels: list[float]
    node: float


class DynamicPolicy(Policy):
    """Expands one tree per request and step. The state of a request is its :class:`AcceptanceBias`."""

    def __init__(
        self,
        predictor: Predictor,
        chances: ProbabilityCalibration,
        costs: Callable[[int, int], TreeCost],
        entropy_window: int,
    ) -> None:
        """``costs`` are by the number of a step's requests and their mean context in tokens."""
        self.chances = chances
        self.entropy_window = entropy_window
        self._costs = costs
        # Whether to draft at all is decided by the signals that are there before the heads run.
        self._before = GoodputPolicy(predictor, costs, entropy_window)
        self._worth = lru_cache(PRICE_CACHE_SIZE)(self._priced)

    def start(self) -> AcceptanceBias:
        return AcceptanceBias()

    def reprice(self) -> bool:
        self._worth.cache_clear()
        return self._before.reprice()

    def choose(
        self, signals: Sequence[Signals], states: Sequence[AcceptanceBias], limits: Sequence[int], begin: BeginDraft
    ) -> list[Choice]:
        for seen, bias in zip(signals, states, strict=True):
            bias.update(seen.gained)
        if not any(limits):
            return [Choice(Topology.root_only())] * len(signals)
        limits = [min(limit, MAX_EXPANDED_NODES) for limit in limits]
        context = rounded_context([seen.context for seen in signals])
        before = self._before.best(self._before.scores(signals, states), limits, context)
        drafting = [request for request, tree in enumerate(before) if self._before.trees[tree].nodes]
        if not drafting:
            return [Choice(Topology.root_only())] * len(signals)  # as plain decoding's: there is nothing to fill
        worth = self._worth(tuple(sorted(limits)), context)
        roots = [
            _Node(request, (), 0, 1.0, number, states[request].log_odds) for number, request in enumerate(drafting)
        ]
        guessed = _by_request(self._guessed(begin(drafting), roots, worth, limits))
        chosen = self._best([guessed.get(request, []) for request in range(len(signals))], worth)
        for nodes, bias in zip(chosen, states, strict=True):
            bias.expected = sum(node.chance for node in nodes) if nodes else None
        return [_grown(nodes) for nodes in chosen]

    def _priced(self, limits: tuple[int, ...], context: int) -> _Worth:
        batch = len(limits)
        cost, rate = self._costs(batch, context), self._before.rate(limits, context)
        trees = [
            Topology.root_only(),
            *(Topology.of([(rank,) for rank in range(n)]) for n in range(1, MAX_EXPANDED_NODES + 1)),
        ]
        verify = rate * np.array([cost(tree) - cost.draft(tree) for tree in trees])
        depths = range(1, len(self.chances.slope) + 1)
        chains = [Topology.of([(0,) * at for at in range(1, depth + 1)]) for depth in depths]
        drafts = rate * np.array([0.0, *(cost.draft(chain) for chain in chains)])
        # Kernels may do badly with few rows, so that a larger tree takes less time: nodes are not free for that.
        added = verify - np.minimum.accumulate(verify)
        node = float(min(added[SMALL:] / np.arange(SMALL, MAX_EXPANDED_NODES + 1))) / batch
        return _Worth((verify - verify[0]).tolist(), np.diff(drafts).tolist(), node)

    def _guessed(self, expansion: Expansion, roots: list[_Node], worth: _Worth, limits: Sequence[int]) -> list[_Node]:
        """The likeliest guesses of the levels that are worth running, as many of each request as it may have.

        Each request's come in its trees' canonical order.
        """
        found: list[_Node] = []
        nodes = roots
        for depth in range(min(expansion.num_heads, len(self.chances.slope))):
            follow = self.chances.follow[depth]
            parents = [node for node in nodes if node.chance * follow[0] > worth.node]
            if not parents or (depth and self._expected(parents, found, worth, limits) <= worth.levels[depth]):
                break
            likeliest = max(node.chance for node in parents)
            wanted = max(MIN_CHILDREN, sum(likeliest * chance > worth.node for chance in follow))
            count = min(wanted, max(limits[node.request] for node in parents))
            found += self._children(parents, depth, *expansion.next_level([node.number for node in parents], count))
            found = _within(found, limits)
            nodes = [node for node in found if len(node.path) > depth]
        return found

    def _expected(
        self, parents: Sequence[_Node], found: Sequence[_Node], worth: _Worth, limits: Sequence[int]
    ) -> float:
        """Tokens that a level behind ``parents`` can be expected to add, less what verifying its nodes is worth.

        Where a request has no room for them, likely ones take the places of less likely ones that were ``found``.
        """
        follow = self.chances.follow[len(parents[0].path)]
        own, gain = _by_request(found), 0.0
        for request, its in _by_request(parents).items():
            added = [node.chance * chance - worth.node for node in its for chance in follow]
            gain += sum(value for value in added if value > 0)
            if len(own[request]) + len(added) > limits[request]:
                there = [node.chance - worth.node for node in own[request]]
                both = sorted((value for value in (*there, *added) if value > 0), reverse=True)
                gain -= sum(both[limits[request] :])
        return gain

    def _children(
        self, parents: Sequence[_Node], depth: int, tokens: torch.Tensor, log_probs: torch.Tensor
    ) -> list[_Node]:
        """The guesses behind ``parents``."""
        chance, count = self.chances.probability, tokens.shape[1]
        # Plain Python: between two passes over all weights everything that numpy would need is out of the CPU's caches.
        return [
            _Node(
                node.request,
                (*node.path, rank),
                token,
                node.chance * chance(depth, log_prob, node.log_odds),
                row * count + rank,
                node.log_odds,
            )
            for row, (node, *guesses) in enumerate(zip(parents, tokens.tolist(), log_probs.tolist(), strict=True))
            for rank, (token, log_prob) in enumerate(zip(*guesses, strict=True))
        ]

    def _best(self, guessed: Sequence[Sequence[_Node]], worth: _Worth) -> list[list[_Node]]:
        """The likeliest nodes of each request, as many as pay for the width that all trees are padded to."""
        likeliest = [_likeliest(its) for its in guessed]
        best, width, gain = 0.0, 0, 0.0
        for at in range(max(map(len, likeliest))):
            gain += sum(its[at].chance for its in likeliest if at < len(its))
            if gain - worth.verify[at + 1] > best:
                best, width = gain - worth.verify[at + 1], at + 1
        return [its[:width] for its in likeliest]


def _by_request(nodes: Sequence[_Node]) -> dict[int, list[_Node]]:
    found: dict[int, list[_Node]] = {}
    for node in nodes:
        found.setdefault(node.request, []).append(node)
    return found


def _likeliest(nodes: Sequence[_Node]) -> list[_Node]:
    """One request's guesses, likeliest first: each beginning is the best tree of its size.

    A parent is at least as likely as its children and comes before them in the canonical order, which decides between
    equals.
    """
    return sorted(nodes, key=lambda node: -node.chance)


def _within(nodes: list[_Node], limits: Sequence[int]) -> list[_Node]:
    """The likeliest of each request, as many as it may have, in the order in which they came."""
    if len(nodes) <= min(limits[node.request] for node in nodes):
        return nodes
    best = {request: _likeliest(its)[: limits[request]] for request, its in _by_request(nodes).items()}
    kept = {(node.request, node.path) for its in best.values() for node in its}
    return [node for node in nodes if (node.request, node.path) in kept]


def _grown(nodes: Sequence[_Node]) -> Choice:
    if not nodes:
        return PLAIN
    ordered = sorted(nodes, key=lambda node: (len(node.path), node.path))
    topology = Topology(tuple(node.path for node in ordered))
    return Choice(topology, [node.token for node in ordered])


@register_policy("dynamic", drafts=True)
def _dynamic(inputs: PolicyInputs) -> DynamicPolicy:
    bank = inputs.needs_bank()
    return DynamicPolicy(bank.predictor, bank.chances, inputs.needs_cost().of_batch, inputs.entropy_window)
