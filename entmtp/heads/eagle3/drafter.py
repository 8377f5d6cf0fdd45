"""Drafter of EAGLE-3 heads, which appends a step's accepted paths in one call where the compiled kernels draft."""

from __future__ import annotations

from typing import Protocol

from entmtp.heads.autoregressive.drafter import AutoregressiveDrafter
from entmtp.heads.autoregressive.interface import GuessingHeads
from entmtp.heads.autoregressive.layers import DraftLayers
from entmtp.heads.interface import AcceptedPaths
from entmtp.models.cache import TreeCache
from entmtp.models.kernels.fused_draft import FusedDraftDecoder


class FusedHeads(GuessingHeads, Protocol):
    """Heads that may have a compiled decoder."""

    def fused_decoder(self) -> FusedDraftDecoder | None:
        """The decoder; None where other kernels draft."""


class Eagle3Drafter(AutoregressiveDrafter):
    """Drafter whose layers all belong to one decoder."""

    def __init__(self, heads: FusedHeads, layers: DraftLayers, cache: TreeCache) -> None:
        super().__init__(heads, layers, cache)
        self._decoder = heads.fused_decoder

    def append(self, slots: tuple[int, ...], accepted: AcceptedPaths) -> None:
        decoder = self._decoder()
        if decoder is None or not decoder.appends:
            super().append(slots, accepted)
            return
        layer, inputs = self.cache.tree_layers[-len(self.layers.shapes)], self.cache.state_buffers[0]
        kv_range = self.cache.kv_range(slots, accepted.nodes.shape[1] + 1, padded=True)
        decoder.append(accepted, self.cache.table.index(slots), kv_range, layer, inputs, self.states)
