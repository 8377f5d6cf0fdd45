"""Multi-token-prediction layers of a model, run with the masks of a tree.

They are :class:`entmtp.heads.autoregressive.layers.DraftLayers`.
:mod:`entmtp.heads.native.heads` has the formulas. The modules are transformers' own (``MtpModel``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from entmtp.errors import EntMTPError
from entmtp.models.backbone import Backbone
from entmtp.models.cache import BufferShape, KvRange, LayerShape, TreeLayer
from entmtp.models.masks import AttentionWindow, additive_mask

if TYPE_CHECKING:
    from transformers.cache_utils import Cache

SHARED = "embed_tokens", "shared_head", "rotary_emb"
"""Parts that are shared with the model, whose kernels decide their layout."""


class NativeLayers:
    """A model's multi-token-prediction layers and the shapes of their caches.

    Attributes:
        count: number of layers.
        shapes: each layer's keys and values of a token.
    """

    def __init__(self, backbone: Backbone, mtp: Any) -> None:
        """Wraps transformers' ``MtpModel`` of the backbone's model."""
        self.mtp = mtp
        self.count = len(mtp.layers)
        self.hidden_size, self.dtype = backbone.hidden_size, backbone.dtype
        self._window = getattr(mtp.config, "sliding_window", None) if backbone.applies_sliding_window else None
        self._kinds: list[str] = getattr(mtp.config, "layer_types", None) or ["full_attention"] * self.count
        self._last_position = backbone.max_context - 1
        for name, module in mtp.named_children():
            if name not in SHARED:
                nn.Module.to(module, backbone.device, backbone.dtype)
        self.shapes = tuple(self._shape_of(layer) for layer in range(self.count))
        self._masks = _TreeMask()
        mtp.create_masks_for_mtp_layer = self._masks

    def cache_of(self, layers: Sequence[TreeLayer]) -> Cache:
        from entmtp.models.transformers_cache import transformers_cache

        return transformers_cache(layers)

    def inputs(self, hidden: torch.Tensor) -> torch.Tensor:
        """The model's last decoder states themselves."""
        return hidden

    def run(
        self,
        layer: int,
        tokens: torch.Tensor,
        inputs: torch.Tensor,
        window: AttentionWindow,
        kv_range: KvRange,
        cache: Cache,
    ) -> torch.Tensor:
        """Runs a layer on ``tokens [batch, n]``; returns its states ``[batch, n, hidden_size]``.

        ``inputs [batch, n, hidden_size]`` are the previous layer's states of each token's predecessor. ``cache`` has
        the layers' own keys and values, and stores new ones in the rows of its slot mapping.
        """
        # Layer k has no entry of the first k + 1 tokens: its input needs a state k + 1 tokens earlier.
        visible = window.visible(kv_range, first_row=layer + 2)
        if self._window is not None and self._kinds[layer] == "sliding_attention":
            visible &= window.within_sliding_window(kv_range, self._window)
        self._masks.mask = additive_mask(visible, inputs.dtype)
        positions = window.positions.clamp(max=self._last_position)
        return self.mtp.forward_layer(layer, inputs, positions, cache, input_ids=tokens)

    @torch.inference_mode()
    def _shape_of(self, layer: int) -> LayerShape:
        """Shapes of a layer's cached keys and values, found by running it on one token."""
        from transformers.cache_utils import MtpCache

        device = self.mtp.embed_tokens.weight.device
        cache: Any = MtpCache(config=self.mtp.config)
        token = torch.zeros(1, 1, dtype=torch.int64, device=device)
        state = torch.zeros(1, 1, self.hidden_size, dtype=self.dtype, device=device)
        self.mtp.forward_layer(layer, state, token + layer + 1, cache, input_ids=token)
        keys, values = getattr(cache.layers[layer], "keys", None), getattr(cache.layers[layer], "values", None)
        if keys is None or values is None or self._kinds[layer] not in ("full_attention", "sliding_attention"):
            raise EntMTPError(
                f"heads: the multi-token-prediction layers of model type '{self.mtp.config.model_type}' cache more"
                " than keys and values, which a tree cannot branch; train heads with 'entmtp train'"
            )
        return BufferShape.of(keys), BufferShape.of(values)


class _TreeMask:
    """Replacement of the function that makes transformers' masks, which are those of a chain."""

    mask: torch.Tensor

    def __call__(self, *args: object, **kwargs: object) -> dict[str, torch.Tensor]:
        return {"attention_mask": self.mask}
