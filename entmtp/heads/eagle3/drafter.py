"""Drafter of EAGLE-3 heads, which leaves work undone until it drafts, where the compiled kernels run.

A step that drafts nothing appends one token to each text. Its keys and values are made with those of the following
tokens, in one pass before the next draft. Until then its row of a state buffer has the token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from entmtp.heads.autoregressive.drafter import AutoregressiveDrafter
from entmtp.heads.autoregressive.expansion import AutoregressiveExpansion, GuessedLevel
from entmtp.heads.autoregressive.interface import GuessingHeads
from entmtp.heads.autoregressive.layers import DraftLayers
from entmtp.heads.interface import AcceptedPaths
from entmtp.models.cache import BufferShape, TreeCache
from entmtp.models.kernels.fused_draft import DraftedLevel, FusedDraftDecoder, StoredRows
from entmtp.models.kernels.fused_linear import DraftLinear

DEFERRED_TOKEN = BufferShape(1, 1, torch.int32)
"""State buffer after that of the layers' inputs: 1 + a token whose keys and values are still to be made, else 0."""


class DeferringHeads(GuessingHeads, Protocol):
    """Heads that may have a compiled decoder."""

    def fused_decoder(self) -> FusedDraftDecoder | None:
        """The decoder; None where other kernels draft."""

    @property
    def fused_output(self) -> DraftLinear:
        """Its output layer, over :attr:`draft_vocab`."""

    @property
    def draft_vocab(self) -> torch.Tensor:
        """``[draft_vocab_size]`` int32."""


class Eagle3Drafter(AutoregressiveDrafter):
    """Drafter whose layers all belong to one decoder; the cache's last state buffer is :data:`DEFERRED_TOKEN`."""

    catches_up = True

    def __init__(self, heads: DeferringHeads, layers: DraftLayers, cache: TreeCache) -> None:
        super().__init__(heads, layers, cache)
        self._fused = heads
        layer = cache.tree_layers[-len(layers.shapes)]
        self._rows = StoredRows(layer, cache.state_buffers[0], cache.state_buffers[1], self.states)

    def prefill_states(self, slot: int, features: torch.Tensor, tokens: Sequence[int]) -> list[torch.Tensor]:
        end = self.cache.lengths[slot]
        begin = end - len(tokens)
        self._settle((slot,), torch.tensor([begin]))
        # The rows are those of another text's tokens, or their tokens are read now.
        self._rows.deferred[slot, 0, begin : end + 1] = 0
        return super().prefill_states(slot, features, tokens)

    def append(self, slots: tuple[int, ...], accepted: AcceptedPaths) -> None:
        decoder = self._decoder()
        if decoder is None:
            super().append(slots, accepted)
            return
        index, width = self.cache.table.index(slots), accepted.nodes.shape[1]
        kv_range = self.cache.kv_range(slots, width + 1, padded=True)
        if width == 1:
            decoder.defer(accepted, index, self._rows)
        else:
            decoder.append(accepted, index, self._rows, kv_range.last)

    def expand(self, slots: tuple[int, ...], roots: torch.Tensor) -> AutoregressiveExpansion:
        self._settle(slots, self.cache.table.device_lengths[self.cache.table.index(slots)] + 1)
        return super().expand(slots, roots)

    def guess_level(self, level: GuessedLevel, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        if (decoder := self._decoder()) is None:
            return super().guess_level(level, count)
        roots, index = level.roots, self.cache.table.index(level.roots.slots)
        last = self.cache.kv_range(roots.slots, len(level.depths) + 1, padded=True).last
        drafted = DraftedLevel(
            index,
            roots.prefix_lengths,
            roots.start,
            roots.position,
            level.tokens,
            level.tree_mask,
            level.depths,
            level.depth,
            last,
        )
        output, vocabulary = self._fused.fused_output, self._fused.draft_vocab
        parents = level.states[:, :, -1]
        states, tokens, log_probs = decoder.guess_level(drafted, parents, self._rows, output, vocabulary, count)
        return states[:, :, None], tokens, log_probs

    def _settle(self, slots: tuple[int, ...], ends: torch.Tensor) -> None:
        """Appends what was deferred of the tokens before positions ``ends [batch]``."""
        if (decoder := self._decoder()) is not None:
            last = max(self.cache.lengths[slot] for slot in slots) + 2
            decoder.settle(self.cache.table.index(slots), self._rows, ends, last)

    def _decoder(self) -> FusedDraftDecoder | None:
        decoder = self._fused.fused_decoder()
        return decoder if decoder is not None and decoder.appends else None
