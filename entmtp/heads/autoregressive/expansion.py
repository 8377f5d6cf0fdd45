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
class GuessedLevel:
    """Guessed tokens of one depth, which the layers run on.

    Attributes:
        depth: heads before these tokens; the root's children have depth 1.
        tokens: ``[batch, n]``, of the requests in ``slots``.
        states: ``[batch, n, layers, hidden_size]`` layers' states of the tokens' parents.
        window: what each token attends to.
        start: ``[batch]`` cache rows after which the tokens' keys and values go.
    """

    depth: int
    slots: tuple[int, ...]
    tokens: torch.Tensor
    states: torch.Tensor
    window: AttentionWindow
    start: torch.Tensor


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


class AutoregressiveExpansion:
    """Drafting after the roots of a batch of requests (:class:`entmtp.heads.interface.Expansion`)."""

    def __init__(
        self,
        runner: LevelRunner,
        slots: tuple[int, ...],
        states: torch.Tensor,
        *,
        prefix_lengths: torch.Tensor,
        start: torch.Tensor,
        position: torch.Tensor,
    ) -> None:
        """Starts from the layers' states of the roots, ``states [batch, layers, hidden_size]``.

        ``position [batch]`` are the roots' positions. Every node attends to the first ``prefix_lengths [batch]``
        tokens, which include the root. Cache rows after row ``start [batch]`` are free.
        """
        self.num_heads = runner.num_heads
        self._runner, self._slots = runner, slots
        self._prefix_lengths, self._start, self._position = prefix_lengths, start, position
        self._states = states
        self._expanded = [_ExpandedNode(batch_row, ()) for batch_row in range(len(slots))]
        self._depths: list[int] = []  # depth of each draft row in use, the same for every request
        self._tokens = torch.empty(0)
        self._level = 0

    @torch.inference_mode()
    def next_level(self, parents: Sequence[int], count: int) -> tuple[torch.Tensor, torch.Tensor]:
        if self._level == 0:
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
        """Runs the layers on the guesses ``parents``, one batch row per request, padded to the longest.

        What does not depend on the guessed tokens is made in numpy, whose calls are quicker than a tensor's.
        """
        batch, guesses = len(self._slots), self._tokens.shape[1]
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
        guess = self._on_device(source)
        window = AttentionWindow(
            prefix_lengths=self._prefix_lengths[:, None],
            start=self._start,
            tree_mask=self._on_device(tree_mask),
            positions=(self._position + self._level)[:, None].expand(-1, width),
            tree_positions=self._position[:, None] + self._on_device(np.array(self._depths)),
            real=self._on_device(np.any(tree_mask, axis=-1)),
        )
        tokens, states = self._tokens.flatten()[guess], self._states[guess // guesses]
        level = GuessedLevel(self._level, self._slots, tokens, states, window, self._start + first)
        found = self._runner.guess_level(level, count)
        cells = self._on_device(
            np.array([node.batch_row * width + column for node, column in zip(self._expanded, columns, strict=True)])
        )
        self._states, self._tokens, log_probs = (each.flatten(0, 1)[cells] for each in found)
        return log_probs

    def _on_device(self, numbers: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(numbers).to(self._start.device)


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
