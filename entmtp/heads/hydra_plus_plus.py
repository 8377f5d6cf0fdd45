"""Hydra++ heads as they are published, "prefix-mlp": a decoder layer before the heads (arXiv 2402.05109, section 4).

The layer is one of Llama's with a norm behind it, given the model's decoder states in place of embeddings:
``s[p] = norm(layer(h)[p])``, at position p, attending to its own keys and values of all tokens up to p. The heads are
given ``s`` of the last token that the model has read where :mod:`entmtp.heads.original_hydra` gives them ``h``. What
they guess behind one root is so made from one state; only that state has to be kept up with the text
(:mod:`entmtp.heads.hydra_plus_plus_cache`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm, LlamaRotaryEmbedding

from entmtp.heads.base import DraftHeads
from entmtp.heads.hydra_plus_plus_cache import PrefixMemory, PrefixText
from entmtp.heads.memory import HeadsText
from entmtp.heads.original_hydra import PublishedHydraConfig, PublishedHydraHeads
from entmtp.models.cache import BufferShape, HeadsRows, TreeCache

if TYPE_CHECKING:
    from transformers.cache_utils import Cache

    from entmtp.models.backbone import Backbone


class PrefixHydraConfig(PublishedHydraConfig):
    """Configuration of imported Hydra++ heads; ``layer`` holds the arguments of the layer's ``LlamaConfig``."""

    model_type = "entmtp_prefix_hydra"

    layer: dict[str, Any] | None = None


class PrefixLayer(nn.Module):
    """The decoder layer and the norm behind it; positions are rotary."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        config._attn_implementation = "sdpa"
        self.config = config
        self.layer = LlamaDecoderLayer(config, layer_idx=0)
        self.norm = LlamaRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary = LlamaRotaryEmbedding(config)

    def forward(self, hidden: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor, cache: Cache) -> torch.Tensor:
        """``s [batch, n, hidden_size]`` of decoder states ``hidden [batch, n, hidden_size]`` at ``positions``.

        ``mask [batch, 1, n, rows]`` is added to the scores of the rows that ``cache`` returns.
        """
        rotations = self.rotary(hidden, positions)
        made = self.layer(
            hidden,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            position_embeddings=rotations,
        )
        return self.norm(made)


class PrefixHydraHeads(PublishedHydraHeads):
    """Hydra heads whose methods are given ``s`` for the decoder state; use them through their memory or their text."""

    config_class = PrefixHydraConfig

    def __init__(self, config: PrefixHydraConfig) -> None:
        super().__init__(config)
        self.prefix_layer = PrefixLayer(LlamaConfig(**config.layer or {}))

    def attach(self, backbone: Backbone) -> DraftHeads:
        attached = super().attach(backbone)
        # Angles in 16 bits would be wrong far into a text; and the checkpoint does not hold them.
        self.prefix_layer.rotary = LlamaRotaryEmbedding(self.prefix_layer.config).to(backbone.device)
        return attached

    @property
    def rows(self) -> HeadsRows:
        """The layer's key and value of every token."""
        shape: Any = self.prefix_layer.config
        one = BufferShape(shape.num_key_value_heads, shape.head_dim, self.dtype)
        return HeadsRows(layers=((one, one),))

    def memory(self, cache: TreeCache) -> PrefixMemory:
        return PrefixMemory(self, cache)

    def text(self, hidden: torch.Tensor, tokens: torch.Tensor, begin: int) -> HeadsText:
        return PrefixText(self, hidden, tokens, begin)
