"""Draft cache of Hydra++ heads: their layer's keys and values, and what it made of each slot's last token.

The layer sees what the model has read and nothing else, so that it is never a token ahead of the model and never run on
guesses; the heads guess from its last state as they would from the model's.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers.cache_utils import Cache

from entmtp.heads.hydra_plus_plus_layer import HydraPlusPlusLayer
from entmtp.heads.interface import PREFILL_CHUNK, AcceptedPaths, Drafter, Proposal, TracedText
from entmtp.heads.stateless import StatelessExpansion, StatelessHeads
from entmtp.models.cache import KvRange, TreeCache
from entmtp.models.masks import AttentionWindow, additive
from entmtp.trees.batch import TreeBatch


class HydraPlusPlusDrafter(Drafter):
    """Drafts from what the layer made of each slot's last token.

    Attributes:
        states: ``[slots, hidden_size]`` that state: what the heads are given.
    """

    def __init__(self, heads: StatelessHeads, layer: HydraPlusPlusLayer, cache: TreeCache) -> None:
        self.cache = cache
        self._heads, self._layer = heads, layer
        self._rows = Cache(layers=[cache.tree_layers[-1]])
        shape = len(cache.lengths), heads.config.hidden_size
        self.states = torch.zeros(shape, dtype=heads.dtype, device=cache.table.device)

    def prefill(self, slot: int, hidden: torch.Tensor, tokens: Sequence[int]) -> None:
        self.states[slot] = self.prefill_states(slot, hidden)[-1]

    def prefill_states(self, slot: int, hidden: torch.Tensor) -> torch.Tensor:
        """The layer's states ``[n, hidden_size]`` of the last tokens of ``slot``, given the model's."""
        first = self.cache.lengths[slot] - len(hidden)
        parts = []
        for part in hidden.split(PREFILL_CHUNK):
            start = torch.tensor([first], device=hidden.device)
            real = torch.ones(1, len(part), dtype=torch.bool, device=hidden.device)
            first += len(part)
            parts.append(self._follow(KvRange((slot,), 0, first + 1), start, part[None], real)[0])
        return torch.cat(parts)

    def start(self, slot: int, root: torch.Tensor) -> None:
        """The model has not read the root."""

    def append(self, slots: tuple[int, ...], accepted: AcceptedPaths) -> None:
        index, counts = self.cache.table.index(slots), accepted.counts
        width = accepted.nodes.shape[1]
        first = self.cache.table.device_lengths[index] - counts
        real = torch.arange(width, device=counts.device) < counts[:, None]
        made = self._follow(self.cache.kv_range(slots, width, padded=True), first, accepted.path_hidden, real)
        self.states[index] = made[torch.arange(len(slots), device=index.device), counts - 1]

    def draft(self, slots: tuple[int, ...], roots: torch.Tensor, trees: TreeBatch) -> Proposal:
        return self._heads.draft(self.states[self.cache.table.index(slots)], roots, trees)

    def expand(self, slots: tuple[int, ...], roots: torch.Tensor) -> StatelessExpansion:
        return StatelessExpansion(self._heads, self.states[self.cache.table.index(slots)], roots)

    def _follow(self, kv_range: KvRange, first: torch.Tensor, hidden: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """The layer's states ``[batch, n, hidden_size]`` of tokens from position ``first [batch]`` on."""
        window = AttentionWindow.of_chains(first, real)
        self.cache.map_slots(kv_range, real, first)
        mask = additive(window.visible(kv_range), hidden.dtype)
        states: torch.Tensor = self._layer(hidden, window.positions, mask, self._rows)
        return states


class HydraPlusPlusText(TracedText):
    """A whole text: the layer's states at every position of it."""

    @torch.inference_mode()
    def __init__(
        self,
        heads: StatelessHeads,
        drafter: HydraPlusPlusDrafter,
        hidden: torch.Tensor,
        tokens: torch.Tensor,
        begin: int,
    ) -> None:
        """``drafter`` is of a cache of its own, with one empty slot; the rest as for :meth:`DraftHeads.traced_text`."""
        drafter.cache.append([0], [len(tokens)])
        self._heads, self._answer = heads, tokens[begin:]
        # Of the tokens before the answer's, which are those that its tokens were chosen after.
        self._states = drafter.prefill_states(0, hidden)[begin - 1 : -1]

    @torch.inference_mode()
    def teacher_forced(self, at: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        return self._heads.teacher_forced(self._states[at], tokens)

    def expand(self, at: int) -> StatelessExpansion:
        return StatelessExpansion(self._heads, self._states[at : at + 1], self._answer[at : at + 1])
