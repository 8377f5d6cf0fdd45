"""Interface of autoregressive heads to what drafts with them."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from entmtp.models.cache import KvRange
from entmtp.models.masks import AttentionWindow


class GuessingHeads(Protocol):
    """Heads that guess from the states of their layers."""

    @property
    def num_heads(self) -> int:
        """Depth of the deepest tree that they can draft."""

    def top_k(self, states: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Top-k tokens ``[..., count]`` of layers' states ``[..., hidden_size]`` and their log-probabilities."""

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
        """Runs a layer as :meth:`DraftLayers.run`; returns its states and the ``count`` likeliest tokens after each.

        Tokens and their log-probabilities are ``[batch, n, count]``.
        """
