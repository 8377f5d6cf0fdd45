"""What Hydra++ heads remember: their layer's keys and values, and what it made of each slot's last token.

The layer sees what the model has read and nothing else, so that it is never a token ahead of the model and never run on
guesses; the heads guess from its last state as they would from the model's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from transformers.cache_utils import Cache

from entmtp.heads.base import Proposal
from entmtp.heads.growth import LevelByLevel
from entmtp.heads.memory import READ_TOGETHER, HeadsMemory, HeadsText
from entmtp.models.cache import Span, TreeCache
from entmtp.models.masks import View, additive
from entmtp.trees.batch import TreeBatch

if TYPE_CHECKING:
    from entmtp.heads.hydra_plus_plus import PrefixHydraHeads


class PrefixMemory(HeadsMemory):
    """Their part of a cache.

    Attributes:
        states: ``[slots, hidden_size]`` what the layer made of the slot's last token: what the heads are given.
    """

    def __init__(self, heads: PrefixHydraHeads, cache: TreeCache) -> None:
        self.cache = cache
        self._heads = heads
        self._layer = Cache(layers=[cache.tree_layers[-1]])
        shape = len(cache.lengths), heads.config.hidden_size
        self.states = torch.zeros(shape, dtype=heads.dtype, device=cache.table.device)

    def read(self, slot: int, hidden: torch.Tensor, tokens: Sequence[int]) -> None:
        self.states[slot] = self.taken_in(slot, hidden)[-1]

    def taken_in(self, slot: int, hidden: torch.Tensor) -> torch.Tensor:
        """The layer's states ``[n, hidden_size]`` of the last tokens of ``slot``, given the model's."""
        first = self.cache.lengths[slot] - len(hidden)
        parts = []
        for part in hidden.split(READ_TOGETHER):
            start = torch.tensor([first], device=hidden.device)
            real = torch.ones(1, len(part), dtype=torch.bool, device=hidden.device)
            first += len(part)
            parts.append(self._follow(Span((slot,), 0, first + 1), start, part[None], real)[0])
        return torch.cat(parts)

    def begin(self, slot: int, root: torch.Tensor) -> None:
        """The model has not read the root."""

    def extend(self, slots: tuple[int, ...], hidden: torch.Tensor, tokens: torch.Tensor, counts: torch.Tensor) -> None:
        index = self.cache.table.index(slots)
        width = tokens.shape[1]
        first = self.cache.table.device_lengths[index] - counts
        real = torch.arange(width, device=tokens.device) < counts[:, None]
        made = self._follow(self.cache.span(slots, width, padded=True), first, hidden, real)
        self.states[index] = made[torch.arange(len(slots), device=index.device), counts - 1]

    def fill(self, slots: tuple[int, ...], roots: torch.Tensor, trees: TreeBatch) -> Proposal:
        return self._heads.fill(self.states[self.cache.table.index(slots)], roots, trees)

    def growth(self, slots: tuple[int, ...], roots: torch.Tensor) -> LevelByLevel:
        return LevelByLevel(self._heads, self.states[self.cache.table.index(slots)], roots)

    def _follow(self, span: Span, first: torch.Tensor, hidden: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """The layer's states ``[batch, n, hidden_size]`` of tokens from position ``first [batch]`` on."""
        view = View.of_chains(first, real)
        self.cache.place(span, real, first)
        mask = additive(view.visible(span), hidden.dtype)
        states: torch.Tensor = self._heads.prefix_layer(hidden, view.positions, mask, self._layer)
        return states


class PrefixText(HeadsText):
    """A whole text: the layer's states at every place of it."""

    @torch.inference_mode()
    def __init__(self, heads: PrefixHydraHeads, hidden: torch.Tensor, tokens: torch.Tensor, begin: int) -> None:
        """Arguments as :meth:`entmtp.heads.base.DraftHeads.text`."""
        memory = heads.memory(TreeCache(heads.rows.layers, 1, len(tokens), tokens.device))
        memory.cache.append([0], [len(tokens)])
        self._heads, self._answer = heads, tokens[begin:]
        # Of the tokens before the answer's, which are those that its tokens were chosen behind.
        self._states = memory.taken_in(0, hidden)[begin - 1 : -1]

    @torch.inference_mode()
    def teacher_forced(self, at: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        return self._heads.teacher_forced(self._states[at], tokens)

    def growth(self, at: int) -> LevelByLevel:
        return LevelByLevel(self._heads, self._states[at : at + 1], self._answer[at : at + 1])
