"""Hydra++ heads as they are published, "prefix-mlp": a decoder layer before the heads (arXiv 2402.05109, section 4).

The layer is one of Llama's with a norm after it, given the model's decoder states in place of embeddings:
``s[p] = norm(layer(h)[p])``, at position p, attending to its own keys and values of all tokens up to p. The heads are
given ``s`` of the last token that the model has read where :mod:`entmtp.heads.original_hydra` gives them ``h``. What
they guess after one root is so made from one state; only that state has to be kept up with the text
(:mod:`entmtp.heads.hydra_plus_plus_cache`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from entmtp.heads.hydra_plus_plus_cache import HydraPlusPlusDrafter, HydraPlusPlusText
from entmtp.heads.hydra_plus_plus_layer import HydraPlusPlusLayer
from entmtp.heads.interface import TracedText
from entmtp.heads.original_hydra import OriginalHydraConfig, OriginalHydraHeads
from entmtp.heads.registry import register_heads
from entmtp.models.cache import BufferShape, DraftCacheLayout, TreeCache

if TYPE_CHECKING:
    from entmtp.models.backbone import Backbone


class HydraPlusPlusConfig(OriginalHydraConfig):
    """Configuration of imported Hydra++ heads; ``layer`` holds the arguments of the layer's ``LlamaConfig``."""

    model_type = "entmtp_prefix_hydra"

    layer: dict[str, Any] | None = None


@register_heads
class HydraPlusPlusHeads(OriginalHydraHeads):
    """Hydra heads whose methods are given ``s`` for the decoder state; use them through their drafter or their text."""

    config_class = HydraPlusPlusConfig

    def __init__(self, config: HydraPlusPlusConfig) -> None:
        super().__init__(config)
        self.prefix_layer = HydraPlusPlusLayer(LlamaConfig(**config.layer or {}))

    def attach(self, backbone: Backbone) -> Self:
        attached = super().attach(backbone)
        # Angles in 16 bits would be wrong far into a text; and the checkpoint does not hold them.
        self.prefix_layer.rotary = LlamaRotaryEmbedding(self.prefix_layer.config).to(backbone.device)
        return attached

    @property
    def cache_layout(self) -> DraftCacheLayout:
        """The layer's key and value of every token."""
        shape: Any = self.prefix_layer.config
        one = BufferShape(shape.num_key_value_heads, shape.head_dim, self.dtype)
        return DraftCacheLayout(layers=((one, one),))

    def drafter(self, cache: TreeCache) -> HydraPlusPlusDrafter:
        return HydraPlusPlusDrafter(self, self.prefix_layer, cache)

    def traced_text(self, hidden: torch.Tensor, tokens: torch.Tensor, begin: int) -> TracedText:
        cache = TreeCache(self.cache_layout.layers, 1, len(tokens), tokens.device)
        return HydraPlusPlusText(self, self.drafter(cache), hidden, tokens, begin)
