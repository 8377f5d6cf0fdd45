"""Drafting trees with autoregressive heads, level by level. A node attends to the text and its own ancestors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from entmtp.heads.interface import Expansion, Proposal
from entmtp.models.masks import AttentionWindow
from entmtp.trees.batch import TreeBatch


@dataclass(frozen=True)
class Roots:
    """Roots of a batch of requests, from which trees are drafted.

    Attributes:
        slots: the requests' slots.
        prefix_lengths: ``[batch]`` tokens that every node attends to, from the start of the text; the root is among
            them.
        start: ``[batch]`` cache rows after which rows are free.
        position: ``[batch]`` the roots' positions.
    """

    slots: tuple[int, ...]
    prefix_lengths: torch.Tensor
    start: torch.Tensor
    position: torch.Tensor


@dataclass(frozen=True)
class GuessedLevel:
    """Guessed tokens of one depth, which the layers run on.

    What does not depend on the guesses is in numpy, whose calls are quicker than a tensor's.

    Attributes:
        roots: those of the trees.
        depth: heads before these tokens; the root's children have depth 1.
        tokens: ``[batch, n]``, of the requests of the roots.
        states: ``[batch, n, layers, hidden_size]`` layers' states of the tokens' parents.
        tree_mask: ``[batch, n, rows]`` which of the requests' draft rows a token attends to. The last ``n`` are the
            level's own.
        depths: ``[rows]`` int64, those of the draft rows, the same for every request.
    """

    roots: Roots
    depth: int
    tokens: torch.Tensor
    states: torch.Tensor
    tree_mask: np.ndarray
    depths: np.ndarray

    @property
    def first(self) -> int:
        """Draft rows before the level's own."""
        return len(self.depths) - self.tokens.shape[1]

    @property
    def start(self) -> torch.Tensor:
        """``[batch]`` cache rows after which the tokens' keys and values go."""
        return self.roots.start + self.first

    def window(self) -> AttentionWindow:
        """Build the window of the rows that each token attends to."""
        roots, device = self.roots, self.tokens.device
        return AttentionWindow(
            prefix_lengths=roots.prefix_lengths[:, None],
            start=roots.start,
            tree_mask=torch.from_numpy(self.tree_mask).to(device),
            positions=(roots.position + self.depth)[:, None].expand_as(self.tokens),
            tree_positions=roots.position[:, None] + torch.from_numpy(self.depths).to(device),
            real=torch.from_numpy(np.any(self.tree_mask, axis=-1)).to(device),
        )


class LevelRunner(Protocol):
    """Interface of the drafter that an expansion needs."""

    @property
    def num_heads(self) -> int: ...

    @property
    def num_layers(self) -> int: ...

    def top_k(self, states: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Top-k tokens ``[..., count]`` of layers' states ``[..., hidden_size]`` and their log-probabilities."""

    def guess_level(self, level: GuessedLevel, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Runs the layers on a level's tokens.

        Returns the layers' states ``[batch, n, layers, hidden_size]``, and the ``count`` likeliest tokens after each
        token ``[batch, n, count]`` with their log-probabilities.
        """


@dataclass(frozen=True)
class _ExpandedNode:
    """An expanded node: its batch row, and the draft rows of its path, counted from its request's first draft row."""

    batch_row: int
    path: tuple[int, ...]


class AutoregressiveExpansion(Expansion):
    """Drafting after the roots of a batch of requests."""

    def __init__(self, runner: LevelRunner, roots: Roots, states: torch.Tensor) -> None:
        """Starts from the layers' states of the roots, ``states [batch, layers, hidden_size]``."""
        self.num_heads = runner.num_heads
        self._runner, self._roots, self._states = runner, roots, states
        self._expanded = [_ExpandedNode(batch_row, ()) for batch_row in range(len(roots.slots))]
        self._depths: list[int] = []  # depth of each draft row in use, the same for every request
        self._tokens = torch.empty(0)
        self._level = 0

    @torch.inference_mode()
    def next_level(self, parents: Sequence[int], count: int) -> tuple[torch.Tensor, torch.Tensor]:
        if self._level == 0:
            if list(parents) != list(range(len(self._expanded))):
                self._expanded = [self._expanded[parent] for parent in parents]
                self._states = self._states[self._on_device(np.array(parents))]
            self._tokens, log_probs = self._runner.top_k(self._states[:, 0], count)
        else:
            log_probs = self._run(parents, count)
        self._level += 1
        return self._tokens, log_probs

    def replace(self, tokens: torch.Tensor) -> None:
        self._tokens = tokens

    def _run(self, parents: Sequence[int], count: int) -> torch.Tensor:
        """Runs the layers on the guesses ``parents``, one batch row per request, padded to the longest."""
        batch, guesses = len(self._roots.slots), self._tokens.shape[1]
        grandparents = [self._expanded[parent // guesses] for parent in parents]
        columns, used = [], [0] * batch
        for node in grandparents:
            columns.append(used[node.batch_row])
            used[node.batch_row] += 1
        first, width = len(self._depths), max(used)
        self._depths += [self._level] * width
        self._expanded = [
            _ExpandedNode(node.batch_row, (*node.path, first + column))
            for node, column in zip(grandparents, columns, strict=True)
        ]
        source = np.zeros((batch, width), dtype=np.int64)  # padding repeats guess 0
        tree_mask = np.zeros((batch, width, len(self._depths)), dtype=np.bool_)
        for node, column, parent in zip(self._expanded, columns, parents, strict=True):
            source[node.batch_row, column] = parent
            tree_mask[node.batch_row, column, node.path] = True
        tokens = self._tokens.flatten()[self._on_device(source)]
        states = self._states[self._on_device(source // guesses)]
        level = GuessedLevel(self._roots, self._level, tokens, states, tree_mask, np.array(self._depths))
        found = self._runner.guess_level(level, count)
        cells = [node.batch_row * width + column for node, column in zip(self._expanded, columns, strict=True)]
        self._states, self._tokens, log_probs = (self._cells(each, cells) for each in found)
        return log_probs

    def _cells(self, found: torch.Tensor, cells: Sequence[int]) -> torch.Tensor:
        """Selects ``cells`` of the first two dimensions of what was ``found [batch, n, ...]``."""
        flat = found.flatten(0, 1)
        return flat if cells == list(range(len(flat))) else flat[self._on_device(np.array(cells))]

    def _on_device(self, numbers: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(numbers).to(self._roots.start.device)


def draft_trees(expansion: Expansion, drafting: Sequence[int], roots: torch.Tensor, trees: TreeBatch) -> Proposal:
    """Drafts ``trees`` of given topologies after ``roots [batch]``.

    ``expansion`` covers the batch rows ``drafting``: all whose trees have nodes besides the root.
    """
    tokens, log_probs = torch.zeros_like(trees.depth), torch.zeros_like(trees.depth, dtype=torch.float32)
    tokens[:, 0] = roots
    parent_index: dict[tuple[int, int], int] = {}  # of the last level, by batch row and node
    count = 1
    for level in range(trees.shape.depth):
        inner = [
            (batch_row, node)
            for batch_row, topology in enumerate(trees.topologies)
            if level < topology.max_depth
            for node in topology.internal_nodes[level]
        ]
        parents = [
            parent_index[batch_row, topology.parents[node]] * count + topology.paths[node - 1][-1]
            if level
            else drafting.index(batch_row)
            for batch_row, node in inner
            for topology in [trees.topologies[batch_row]]
        ]
        top_tokens, top_log_probs = expansion.next_level(parents, trees.shape.ranks[level])
        parent_index, count = {node: index for index, node in enumerate(inner)}, top_tokens.shape[1]
        on_level = trees.depth == level + 1
        guess = (trees.parent_index * count + trees.rank) * on_level
        tokens = torch.where(on_level, top_tokens.flatten()[guess], tokens)
        log_probs = torch.where(on_level, top_log_probs.flatten()[guess], log_probs)
    return Proposal(tokens, log_probs)
