"""Guessing trees with native heads, a level at a time: what a node's layers see are the text and its own ancestors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from entmtp.heads.interface import Expansion, Proposal
from entmtp.models.masks import AttentionWindow
from entmtp.trees.batch import TreeBatch


class Layers(Protocol):
    """What an expansion asks of the drafter whose cache its rows lie in."""

    @property
    def num_heads(self) -> int: ...

    @property
    def num_layers(self) -> int: ...

    def top_k(self, states: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The likeliest tokens ``[..., count]`` of layers' states ``[..., hidden_size]``, with log-probabilities."""

    def run_level(
        self,
        level: int,
        slots: tuple[int, ...],
        tokens: torch.Tensor,
        states: torch.Tensor,
        window: AttentionWindow,
        start: torch.Tensor,
    ) -> torch.Tensor:
        """The layers' states ``[batch, n, layers, hidden_size]`` of guessed ``tokens [batch, n]`` at depth ``level``.

        ``states`` are those of their parents. Their rows begin after row ``start [batch]``.
        """


@dataclass(frozen=True)
class _Asked:
    """A node that was guessed behind: its batch row, and the columns of its request's rows on its path."""

    request: int
    lineage: tuple[int, ...]


class NativeExpansion:
    """The guesses behind the roots of a batch of requests (:class:`entmtp.heads.interface.Expansion`)."""

    def __init__(
        self,
        layers: Layers,
        slots: tuple[int, ...],
        states: torch.Tensor,
        *,
        seen: torch.Tensor,
        begin: torch.Tensor,
        position: torch.Tensor,
    ) -> None:
        """``states [batch, layers, hidden_size]`` are the layers' of the roots.

        The roots lie at ``position [batch]``; every node sees the first ``seen [batch]`` tokens, the root among them.
        Rows behind ``begin [batch]`` are free.
        """
        self.num_heads = layers.num_heads
        self._layers, self._slots = layers, slots
        self._seen, self._begin, self._position = seen, begin, position
        self._states = states
        self._asked = [_Asked(request, ()) for request in range(len(slots))]
        self._depths: list[int] = []  # of the rows that are in use, the same for every request
        self._tokens = torch.empty(0)
        self._level = 0

    @torch.inference_mode()
    def next_level(self, parents: Sequence[int], count: int) -> tuple[torch.Tensor, torch.Tensor]:
        if self._level == 0:
            self._asked = [self._asked[parent] for parent in parents]
            self._states = self._states[self._on_device(parents)]
        else:
            self._run(parents)
        states = self._states[:, min(self._level, self._layers.num_layers - 1)]
        self._tokens, log_probs = self._layers.top_k(states, count)
        self._level += 1
        return self._tokens, log_probs

    def _run(self, parents: Sequence[int]) -> None:
        """Runs the layers on the asked guesses; a request's are one beside the other, padded to the most of any."""
        guesses = self._tokens.shape[1]
        before = [self._asked[parent // guesses] for parent in parents]
        places, used = [], [0] * len(self._slots)
        for node in before:
            places.append(used[node.request])
            used[node.request] += 1
        first, width = len(self._depths), max(used)
        self._depths += [self._level] * width
        self._asked = [
            _Asked(node.request, (*node.lineage, first + place)) for node, place in zip(before, places, strict=True)
        ]
        asked = self._on_device(parents)
        request, place, *lineage = self._on_device(
            [[node.request, place, *node.lineage] for node, place in zip(self._asked, places, strict=True)]
        ).T
        tokens, states, own = self._padded(width)
        tokens[request, place] = self._tokens.flatten()[asked]
        states[request, place] = self._states[asked // guesses]
        for column in lineage:
            own[request, place, column] = True
        window = AttentionWindow(
            prefix_lengths=self._seen[:, None],
            start=self._begin,
            tree_mask=own,
            positions=(self._position + self._level)[:, None].expand(-1, width),
            tree_positions=self._position[:, None] + self._on_device(self._depths),
            real=own.any(-1),
        )
        made = self._layers.run_level(self._level, self._slots, tokens, states, window, self._begin + first)
        self._states = made[request, place]

    def _padded(self, width: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        batch = len(self._slots)
        tokens = self._tokens.new_zeros(batch, width)
        states = self._states.new_zeros(batch, width, *self._states.shape[1:])
        own = torch.zeros(batch, width, len(self._depths), dtype=torch.bool, device=tokens.device)
        return tokens, states, own

    def _on_device(self, numbers: Sequence[int] | list[list[int]]) -> torch.Tensor:
        return torch.tensor(numbers, device=self._seen.device)


def fill(expansion: Expansion, drafting: Sequence[int], roots: torch.Tensor, trees: TreeBatch) -> Proposal:
    """Fills trees behind ``roots [batch]`` that were decided before.

    ``expansion`` is that of the batch rows ``drafting``, which are all whose trees have nodes.
    """
    tokens, log_probs = torch.zeros_like(trees.depth), torch.zeros_like(trees.depth, dtype=torch.float32)
    tokens[:, 0] = roots
    place: dict[tuple[int, int], int] = {}
    count = 1
    for level in range(trees.shape.depth):
        inner = [
            (row, node)
            for row, topology in enumerate(trees.topologies)
            if level < topology.max_depth
            for node in topology.internal_nodes[level]
        ]
        asked = [
            place[row, topology.parents[node]] * count + topology.paths[node - 1][-1] if level else drafting.index(row)
            for row, node in inner
            for topology in [trees.topologies[row]]
        ]
        best, best_log_probs = expansion.next_level(asked, trees.shape.ranks[level])
        place, count = {both: at for at, both in enumerate(inner)}, best.shape[1]
        here = trees.depth == level + 1
        guess = (trees.parent_index * count + trees.rank) * here
        tokens = torch.where(here, best.flatten()[guess], tokens)
        log_probs = torch.where(here, best_log_probs.flatten()[guess], log_probs)
    return Proposal(tokens, log_probs)
