"""Base of draft heads that run layers of their own on each drafted token, one token ahead of the model.

The draft cache entry of the token at position p needs the model's decoder state of position p - 1 alone. Draft cache
entries of guesses are discarded after the step. Those of accepted tokens are computed again from the model's own
decoder states (:mod:`entmtp.heads.autoregressive.drafter`), as in SGLang's 'draft extend'.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from entmtp.heads.autoregressive.drafter import AutoregressiveDrafter
from entmtp.heads.autoregressive.text import ROOTS_PER_PASS, AutoregressiveText
from entmtp.heads.base import DraftHeads
from entmtp.models.cache import BufferShape, DraftCacheLayout, KvRange, TreeCache
from entmtp.models.masks import AttentionWindow

if TYPE_CHECKING:
    from entmtp.heads.autoregressive.layers import DraftLayers

EXPANDED = 64
"""Most nodes of one request and level that a policy may expand."""


class AutoregressiveHeads(DraftHeads):
    """Heads that draft level by level with the same layers for every depth.

    Attributes:
        layers: these layers; a layer's states are what :meth:`DraftHeads.draft_logits` receives.
    """

    layers: DraftLayers

    @property
    def cache_layout(self) -> DraftCacheLayout:
        """The layers' keys and values, and what each layer receives of each token."""
        states = BufferShape(1, self.layers.hidden_size, self.layers.dtype)
        spare_rows = EXPANDED * (self.num_heads - 1)
        return DraftCacheLayout(tuple(self.layers.shapes), (states,) * self.layers.count, spare_rows)

    def guess(
        self,
        layer: int,
        tokens: torch.Tensor,
        inputs: torch.Tensor,
        window: AttentionWindow,
        kv_range: KvRange,
        cache: Any,
        count: int,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """A layer's states, and the likeliest tokens after each, as in :class:`GuessingHeads`."""
        states = self.layers.run(layer, tokens, inputs, window, kv_range, cache)
        return states, *self.top_k(states, count)

    def drafter(self, cache: TreeCache) -> AutoregressiveDrafter:
        return AutoregressiveDrafter(self, self.layers, cache)

    def traced_text(self, features: torch.Tensor, tokens: torch.Tensor, begin: int) -> AutoregressiveText:
        layout, levels = self.cache_layout, self.num_heads - self.layers.count
        capacity = len(tokens) + ROOTS_PER_PASS * levels + layout.spare_rows
        cache = TreeCache(layout.layers, 1, capacity, tokens.device, layout.state_buffers)
        return AutoregressiveText(self.drafter(cache), features, tokens, begin)
