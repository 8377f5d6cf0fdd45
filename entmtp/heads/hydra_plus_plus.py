"""Published Hydra++ heads ("prefix-mlp"): a decoder layer before the heads (arXiv 2402.05109, section 4).

The layer is a Llama layer with a norm after it. Its inputs are the model's decoder states instead of embeddings:
``s[p] = norm(layer(h)[p])`` at position p, attending to its own keys and values of all tokens up to p. The heads then
receive ``s`` of the last token that the model has read, where :mod:`entmtp.heads.original_hydra` uses ``h``. All
guesses after a root start from that one state, which the drafter updates with each committed token
(:mod:`entmtp.heads.hydra_plus_plus_cache`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch

from entmtp.heads.hydra_plus_plus_cache import HydraPlusPlusDrafter, HydraPlusPlusText
from entmtp.heads.hydra_plus_plus_layer import HydraPlusPlusLayer
from entmtp.heads.interface import TracedText
from entmtp.heads.original_hydra import OriginalHydraConfig, OriginalHydraHeads
from entmtp.heads.registry import register_heads
from entmtp.models.cache import BufferShape, DraftCacheLayout, TreeCache

if TYPE_CHECKING:
    from entmtp.models.backbone import Backbone


@dataclass(kw_only=True)
class HydraPlusPlusConfig(OriginalHydraConfig):
    """Configuration of imported Hydra++ heads; ``layer`` has the arguments of the layer's ``LlamaConfig``."""

    model_type: ClassVar[str] = "entmtp_prefix_hydra"

    layer: dict[str, Any] | None = None


@register_heads
class HydraPlusPlusHeads(OriginalHydraHeads):
    """Hydra heads whose methods expect ``s`` as the decoder state; call them through a drafter or a traced text."""

    config_class = HydraPlusPlusConfig
    config: HydraPlusPlusConfig

    def __init__(self, config: HydraPlusPlusConfig) -> None:
        from transformers import LlamaConfig

        super().__init__(config)
        self.prefix_layer = HydraPlusPlusLayer(LlamaConfig(**config.layer or {}))

    def attach(self, backbone: Backbone) -> Self:
        from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

        attached = super().attach(backbone)
        # The checkpoint lacks the rotary frequencies, and in 16 bits they would be too coarse at high positions.
        self.prefix_layer.rotary = LlamaRotaryEmbedding(self.prefix_layer.config).to(backbone.device)
        return attached

    @property
    def cache_layout(self) -> DraftCacheLayout:
        """The layer's key and value of each token."""
        shape: Any = self.prefix_layer.config
        buffer = BufferShape(shape.num_key_value_heads, shape.head_dim, self.dtype)
        return DraftCacheLayout(layers=((buffer, buffer),))

    def drafter(self, cache: TreeCache) -> HydraPlusPlusDrafter:
        return HydraPlusPlusDrafter(self, self.prefix_layer, cache)

    def traced_text(self, features: torch.Tensor, tokens: torch.Tensor, begin: int) -> TracedText:
        cache = TreeCache(self.cache_layout.layers, 1, len(tokens), tokens.device)
        return HydraPlusPlusText(self, self.drafter(cache), features, tokens, begin)
