"""Interface of DFlash heads to what drafts with them."""

from __future__ import annotations

from typing import Protocol

import torch

from entmtp.heads.dflash.configuration import DFlashConfig
from entmtp.heads.dflash.layers import DFlashLayers


class BlockHeads(Protocol):
    """Heads whose blocks are run by ``layers``."""

    config: DFlashConfig
    layers: DFlashLayers

    def linear(self, name: str, states: torch.Tensor) -> torch.Tensor:
        """Multiplies ``states [..., in]`` by the weight of this name."""

    def likeliest(self, logits: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Top-k tokens ``[..., count]`` of logits over the draft vocabulary and their log-probabilities."""

    def token_vectors(self, tokens: torch.Tensor) -> torch.Tensor | None:
        """Vectors ``[..., markov_rank]`` of ``tokens [...]``; None without DSpark's bias."""

    def head_states(self, states: torch.Tensor, previous: torch.Tensor) -> torch.Tensor:
        """Joins ``h [..., hidden_size]`` and, with DSpark's bias, the vectors of ``previous [...]``."""

    def estimated_odds(self, states: torch.Tensor) -> torch.Tensor | None:
        """Log-odds ``[...]`` that a guess of :meth:`head_states` is accepted; None if the heads estimate nothing."""
