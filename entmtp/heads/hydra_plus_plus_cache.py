"""Draft cache of Hydra++ heads: the keys and values of their decoder layer, and its state of each slot's last token.

The layer reads the same tokens as the model, and no guesses. The heads guess from its last state as other heads guess
from the model's.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from entmtp.heads.hydra_plus_plus_layer import HydraPlusPlusLayer
from entmtp.heads.interface import AcceptedPaths, Drafter, Proposal, TracedText
from entmtp.heads.stateless import StatelessExpansion, StatelessHeads
from entmtp.models.backbone import PREFILL_CHUNK
from entmtp.models.cache import KvRange, TreeCache
from entmtp.models.masks import AttentionWindow, additive_mask
from entmtp.trees.batch import TreeBatch


class HydraPlusPlusDrafter(Drafter):
    """Drafter that starts from the layer's state of each slot's last token.

    Attributes:
        states: ``[slots, hidden_size]`` these states, the heads' inputs.
    """

    def __init__(self, heads: StatelessHeads, layer: HydraPlusPlusLayer, cache: TreeCache) -> None:
        from entmtp.models.transformers_cache import transformers_cache

        self.cache = cache
        self._heads, self._layer = heads, layer
        self._layer_cache = transformers_cache(cache.tree_layers[-1:])
        shape = len(cache.lengths), heads.config.hidden_size
        self.states = torch.zeros(shape, dtype=heads.dtype, device=cache.table.device)

    def prefill(self, slot: int, features: torch.Tensor, tokens: Sequence[int]) -> None:
        self.states[slot] = self.prefill_states(slot, features)[-1]

    def prefill_states(self, slot: int, hidden: torch.Tensor) -> torch.Tensor:
        """Runs the layer on the last tokens of ``slot``; returns its states ``[n, hidden_size]``.

        ``hidden [n, hidden_size]`` are the model's decoder states of these tokens.
        """
        first = self.cache.lengths[slot] - len(hidden)
        chunks = []
        for chunk in hidden.split(PREFILL_CHUNK):
            start = torch.tensor([first], device=hidden.device)
            real = torch.ones(1, len(chunk), dtype=torch.bool, device=hidden.device)
            first += len(chunk)
            chunks.append(self._extend(KvRange((slot,), 0, first + 1), start, chunk[None], real)[0])
        return torch.cat(chunks)

    def start(self, slot: int, root: torch.Tensor) -> None:
        """Does nothing: the layer reads a token with the model, which has not read the root yet."""

    def append(self, slots: tuple[int, ...], accepted: AcceptedPaths) -> None:
        index, counts = self.cache.table.index(slots), accepted.counts
        width = accepted.nodes.shape[1]
        first = self.cache.table.device_lengths[index] - counts
        real = torch.arange(width, device=counts.device) < counts[:, None]
        states = self._extend(self.cache.kv_range(slots, width, padded=True), first, accepted.path_features, real)
        self.states[index] = states[torch.arange(len(slots), device=index.device), counts - 1]

    def draft(self, slots: tuple[int, ...], roots: torch.Tensor, trees: TreeBatch) -> Proposal:
        return self._heads.draft(self.states[self.cache.table.index(slots)], roots, trees)

    def expand(self, slots: tuple[int, ...], roots: torch.Tensor) -> StatelessExpansion:
        return StatelessExpansion(self._heads, self.states[self.cache.table.index(slots)], roots)

    def _extend(self, kv_range: KvRange, first: torch.Tensor, hidden: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """Runs the layer on committed tokens from position ``first [batch]`` on.

        ``hidden [batch, n, hidden_size]`` are the model's decoder states. Returns the layer's, of the same shape.
        """
        window = AttentionWindow.of_chains(first, real)
        self.cache.map_slots(kv_range, real, first)
        mask = additive_mask(window.visible(kv_range), hidden.dtype)
        states: torch.Tensor = self._layer(hidden, window.positions, mask, self._layer_cache)
        return states


class HydraPlusPlusText(TracedText):
    """A whole text, given by the layer's states at all its positions."""

    @torch.inference_mode()
    def __init__(
        self,
        heads: StatelessHeads,
        drafter: HydraPlusPlusDrafter,
        hidden: torch.Tensor,
        tokens: torch.Tensor,
        begin: int,
    ) -> None:
        """Reads the text; ``drafter`` has its own cache with one empty slot. See :meth:`DraftHeads.traced_text`."""
        drafter.cache.append([0], [len(tokens)])
        self._heads, self._answer = heads, tokens[begin:]
        # State i is that of the token before answer token i, from which that token was chosen.
        self._states = drafter.prefill_states(0, hidden)[begin - 1 : -1]

    @torch.inference_mode()
    def teacher_forced(self, at: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        return self._heads.teacher_forced(self._states[at], tokens)

    def expand(self, at: int) -> StatelessExpansion:
        return StatelessExpansion(self._heads, self._states[at : at + 1], self._answer[at : at + 1])
