"""EAGLE-2's dynamic tree (arXiv 2406.16858, sections 4.1 and 4.2), by the heads' own probabilities.

A node's value is the product of the probabilities along its path. Expansion: the likeliest nodes of the last level
each get their likeliest children. Re-ranking: the best of all drafted nodes are the tree. The sizes are those of
EAGLE-3's authors (``top_k`` 10, ``depth`` 7 rounds after the first level, ``total_token`` 60 with the root, in
``eagle/model/ea_model.py`` of github.com/SafeAILab/EAGLE). Every level is run, whatever it is likely to find.

Values are logarithms here, and sums. Levels are as wide for one request as for another, so a batch is one array.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from entmtp.heads.interface import Expansion
from entmtp.policies.base import BeginDraft, Choice, Policy
from entmtp.policies.registry import PolicyInputs, register_policy
from entmtp.policies.signals import Signals
from entmtp.trees.topology import Path, Topology

TOP_K = 10
"""Children of each expanded node, and nodes of a level that are expanded."""
LEVELS = 8
"""Depth of the tree: the root's children and seven rounds of expansion."""
MAX_TREE_NODES = 59
"""Nodes of the largest tree, without the root."""


class Eagle2Policy(Policy):
    """Expands one tree per request and step; it has no state."""

    max_nodes = MAX_TREE_NODES

    def __init__(self, entropy_window: int) -> None:
        self.entropy_window = entropy_window

    def choose(
        self, signals: Sequence[Signals], states: Sequence[Any], limits: Sequence[int], begin: BeginDraft
    ) -> list[Choice]:
        drafting = [request for request, limit in enumerate(limits) if limit]
        if not drafting:
            return [Choice(Topology.root_only())] * len(limits)
        choices = [Choice(Topology.root_only(), [])] * len(limits)
        drafted = _expand(begin(drafting), len(drafting))
        for row, request in enumerate(drafting):
            choices[request] = drafted.best(row, min(limits[request], MAX_TREE_NODES))
        return choices


@dataclass(frozen=True)
class _DraftedNodes:
    """All drafted nodes, each request's in the canonical order of trees.

    Attributes:
        values: ``[requests, nodes]`` logarithms of the products of probabilities.
        tokens: ``[requests, nodes]``.
        parents: ``[requests, nodes]`` indices of the parents; -1 is the root.
        ranks: ``[nodes]`` ranks among the parents' children.
    """

    values: np.ndarray
    tokens: np.ndarray
    parents: np.ndarray
    ranks: np.ndarray

    def best(self, row: int, count: int) -> Choice:
        """The tree of a request's best nodes. A parent is among them if a child is."""
        nodes = _best(self.values[row : row + 1], count)[0]
        paths: dict[int, Path] = {-1: ()}
        chosen = zip(nodes.tolist(), self.parents[row, nodes].tolist(), self.ranks[nodes].tolist(), strict=True)
        for node, parent, rank in chosen:
            paths[node] = (*paths[parent], rank)
        del paths[-1]
        return Choice(Topology(tuple(paths.values())), self.tokens[row, nodes].tolist())


def _expand(expansion: Expansion, requests: int) -> _DraftedNodes:
    """Run all levels: each expands the best nodes of the last one."""
    rows, count = np.arange(requests)[:, None], 0
    frontier, value = np.full((requests, 1), -1), np.zeros((requests, 1))
    numbers = rows  # of the frontier's nodes among the level's guesses
    values, tokens, parents, ranks = [], [], [], []
    for _ in range(min(expansion.num_heads, LEVELS)):
        guesses, log_probs = expansion.next_level(numbers.ravel().tolist(), TOP_K)
        children = guesses.shape[1]
        # Rounding may not make a child likelier than its parent.
        added = value[..., None] + np.minimum(log_probs.double().cpu().numpy(), 0.0).reshape(*value.shape, children)
        values.append(added.reshape(requests, -1))
        tokens.append(guesses.cpu().numpy().reshape(requests, -1))
        parents.append(frontier.repeat(children, axis=1))
        ranks.append(np.tile(np.arange(children), frontier.shape[1]))
        best, width = _best(values[-1], TOP_K), values[-1].shape[1]
        frontier, value, numbers = count + best, values[-1][rows, best], rows * width + best
        count += width
    return _DraftedNodes(
        np.concatenate(values, axis=1),
        np.concatenate(tokens, axis=1),
        np.concatenate(parents, axis=1),
        np.concatenate(ranks),
    )


def _best(values: np.ndarray, count: int) -> np.ndarray:
    """Indices of the ``count`` largest of ``values [requests, n]``, in ascending order; among equals the first."""
    return np.sort(np.argsort(-values, axis=1, kind="stable")[:, :count], axis=1)


@register_policy("eagle2", by_cost=False, by_bank=False, drafts=True)
def _eagle2(inputs: PolicyInputs) -> Eagle2Policy:
    return Eagle2Policy(inputs.entropy_window)
