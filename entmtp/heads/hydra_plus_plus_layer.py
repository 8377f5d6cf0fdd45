"""Decoder layer of Hydra++ heads (:mod:`entmtp.heads.hydra_plus_plus` has the formula)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from transformers import LlamaConfig
    from transformers.cache_utils import Cache


class HydraPlusPlusLayer(nn.Module):
    """A Llama decoder layer and the norm after it; positions are rotary."""

    def __init__(self, config: LlamaConfig) -> None:
        from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm, LlamaRotaryEmbedding

        super().__init__()
        config._attn_implementation = "sdpa"
        self.config = config
        self.layer = LlamaDecoderLayer(config, layer_idx=0)
        self.norm = LlamaRMSNorm(config.hidden_size, config.rms_norm_eps)
        with torch.device("cpu"):  # what it computes can't be computed on the meta device
            self.rotary = LlamaRotaryEmbedding(config)

    def forward(self, hidden: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor, cache: Cache) -> torch.Tensor:
        """Computes the layer's states ``s`` from the model's states ``hidden``, both ``[batch, n, hidden_size]``.

        ``mask [batch, 1, n, cache_rows]`` is added to the attention scores of the keys that ``cache`` returns.
        """
        rotations = self.rotary(hidden, positions)
        states = self.layer(
            hidden,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            position_embeddings=rotations,
        )
        return self.norm(states)
