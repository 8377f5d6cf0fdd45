"""A model's own multi-token-prediction (MTP) layers as draft heads (DeepSeek-V3, arXiv 2412.19437, section 2.2).

Such layers come with the model (DeepSeek-V3, GLM-4-MoE, Mellum, ...) and need no training. Layer k is one decoder layer
of the model's own kind behind a projection. Of the token at position p it is given

    ``x_k[p] = project([norm(embedding of token p), norm(h_{k-1}[p-1])])``

where ``h_{-1}`` are the model's last decoder states and ``h_k`` is what layer k makes of ``x_k``, attending to its own
keys and values of all tokens before p, and normalised by a norm of its own. The model's output layer on ``h_k[p]``
guesses token p + 1. So layer 0 guesses behind the root, from the state that chose it; layer 1 one deeper, from layer
0's state of the parent and the parent's token; and so on. All of this is transformers' (``MtpModel`` in
``modeling_layers.py``), whose modules run here with the masks of a tree.

Published models mostly have a single layer (``num_nextn_predict_layers`` is 1). transformers' ``generate`` then guesses
one token; vLLM and SGLang apply the layer again to its own output, as EAGLE does, and so does this module: at depths
that have no layer of their own, the last one is given its own state of the parent.

What a layer made of guesses is thrown away after the step: the accepted tokens' entries are made anew from the model's
own decoder states (:mod:`entmtp.heads.native.cache`), as SGLang's 'draft extend' does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import nn

from entmtp.errors import EntMTPError
from entmtp.heads.base import DraftHeads, DraftHeadsConfig, Proposal
from entmtp.heads.memory import HeadsText
from entmtp.heads.native.cache import NativeMemory
from entmtp.heads.native.text import NativeText
from entmtp.models.cache import BufferShape, HeadsRows, LayerShape, Span, TreeCache
from entmtp.models.loading.load import sampled_fingerprint
from entmtp.models.loading.quiet import quiet_loading
from entmtp.models.masks import View, additive
from entmtp.trees.batch import TreeBatch

if TYPE_CHECKING:
    from transformers.cache_utils import Cache

    from entmtp.models.backbone import Backbone

NATIVE = "native"
"""What a user gives instead of a folder with heads."""

DEPTH = 4
"""Tokens that are guessed ahead, or one per layer where the model has more of them: as deep as trained heads go."""

_SHARED = "embed_tokens", "shared_head", "rotary_emb"

_ASKED = 64
"""Nodes of one request and level that a policy may go on behind."""


class NativeConfig(DraftHeadsConfig):
    """Configuration of native heads."""

    model_type = "entmtp_native"


class NativeHeads(DraftHeads):
    """Heads that are part of the model; they guess through their :meth:`memory` alone, within the whole vocabulary."""

    config_class = NativeConfig
    kind = NATIVE

    def __init__(self, backbone: Backbone, layers: Any) -> None:
        """``layers`` is transformers' ``MtpModel`` of the backbone's model."""
        self.layers = len(layers.layers)
        config = NativeConfig(
            hidden_size=backbone.hidden_size,
            vocab_size=backbone.vocab_size,
            num_heads=max(DEPTH, self.layers),
            draft_vocab_size=backbone.vocab_size,
            model_fingerprint=backbone.fingerprint,
        )
        super().__init__(config)
        self.draft_vocab = self.draft_vocab.to(backbone.device)
        self.mtp = layers
        # Of the layers alone: embeddings and output layer are the model's, and lie as its kernels want them.
        own = [(name, value) for name, value in layers.named_parameters() if not name.startswith(_SHARED)]
        self.fingerprint = sampled_fingerprint((NATIVE, config.hidden_size, self.layers), own)
        self._window = getattr(layers.config, "sliding_window", None) if backbone.windowed else None
        self._kinds: list[str] = getattr(layers.config, "layer_types", None) or ["full_attention"] * self.layers
        self._last_position = backbone.max_context - 1
        self.states_dtype = backbone.dtype
        for name, module in layers.named_children():
            if name not in _SHARED:
                nn.Module.to(module, backbone.device, backbone.dtype)
        self.eval().requires_grad_(False)
        self._shapes = tuple(self._shape_of(layer) for layer in range(self.layers))
        self._masks = _GivenMask()
        layers.create_masks_for_mtp_layer = self._masks

    @property
    def rows(self) -> HeadsRows:
        """Each layer's keys and values, and the states that it is given: ``h_{k-1}`` of every token, for layer k."""
        states = BufferShape(1, self.config.hidden_size, self.states_dtype)
        return HeadsRows(self._shapes, (states,) * self.layers, spare=_ASKED * (self.num_heads - 1))

    def memory(self, cache: TreeCache) -> NativeMemory:
        return NativeMemory(self, cache)

    def text(self, hidden: torch.Tensor, tokens: torch.Tensor, begin: int) -> HeadsText:
        return NativeText(self, hidden, tokens, begin)

    def draft_logits(self, states: torch.Tensor, head: int | None = None) -> torch.Tensor:
        return self.mtp._project_to_logits(states)

    def run(
        self, layer: int, tokens: torch.Tensor, before: torch.Tensor, view: View, span: Span, cache: Cache
    ) -> torch.Tensor:
        """A layer's states ``[batch, n, hidden_size]`` of ``tokens [batch, n]``.

        ``before [batch, n, hidden_size]`` are the states before it of each token's predecessor. Keys and values go
        where ``cache``, which holds the layers' own, has planned them.
        """
        # Layer k has no entry of the first k + 1 tokens: nothing k + 1 tokens before them could have been its input.
        visible = view.visible(span, least=layer + 2)
        if self._window is not None and self._kinds[layer] == "sliding_attention":
            visible &= view.near(span, self._window)
        self._masks.mask = additive(visible, before.dtype)
        positions = view.positions.clamp(max=self._last_position)
        return self.mtp.forward_layer(layer, before, positions, cache, input_ids=tokens)

    @torch.inference_mode()
    def _shape_of(self, layer: int) -> LayerShape:
        """What a layer caches, by running it on one token."""
        from transformers.cache_utils import MtpCache

        place = self.mtp.embed_tokens.weight.device
        cache: Any = MtpCache(config=self.mtp.config)
        one = torch.zeros(1, 1, dtype=torch.int64, device=place)
        state = torch.zeros(1, 1, self.config.hidden_size, dtype=self.states_dtype, device=place)
        self.mtp.forward_layer(layer, state, one + layer + 1, cache, input_ids=one)
        keys, values = getattr(cache.layers[layer], "keys", None), getattr(cache.layers[layer], "values", None)
        if keys is None or values is None or self._kinds[layer] not in ("full_attention", "sliding_attention"):
            raise EntMTPError(
                f"heads: the multi-token-prediction layers of model type '{self.mtp.config.model_type}' remember more"
                " than keys and values, which a tree cannot branch; train heads with 'entmtp train'"
            )
        return BufferShape.of(keys), BufferShape.of(values)

    def teacher_forced(self, hidden: torch.Tensor, tokens: torch.Tensor, heads: int | None = None) -> NoReturn:
        _without_memory()

    def fill(self, hidden: torch.Tensor, root: torch.Tensor, trees: TreeBatch) -> Proposal:
        _without_memory()

    def level(self, hidden: torch.Tensor, tokens: torch.Tensor, level: int, carried: torch.Tensor | None) -> NoReturn:
        _without_memory()


class _GivenMask:
    """Stands in for the masks that transformers would make for a chain."""

    mask: torch.Tensor

    def __call__(self, *args: object, **kwargs: object) -> dict[str, torch.Tensor]:
        return {"attention_mask": self.mask}


def _without_memory() -> NoReturn:
    raise EntMTPError("heads: native heads attend to the text before; guess through their memory or their text")


def load_native(backbone: Backbone) -> NativeHeads:
    """The model's own heads, out of the files that it was loaded from.

    Raises:
        EntMTPError: if it has none, or its files lack their weights.
    """
    from transformers.modeling_layers import MtpModel

    kind = backbone.config.model_type
    if not getattr(backbone.config, "num_mtp_layers", None):
        raise EntMTPError(
            f"heads: model type '{kind}' has no multi-token-prediction layers of its own;"
            " train heads with 'entmtp train' and give their folder"
        )
    if backbone.spread:
        raise EntMTPError(
            f"heads: {NATIVE} ones run on one device and the model is spread over {len(backbone.devices)};"
            " train heads with 'entmtp train', or use GPUs that hold the model"
        )
    try:
        with quiet_loading():
            layers = MtpModel.from_pretrained(backbone.model)
    except Exception as error:  # the files are the user's, and transformers raises many types
        reason = " ".join(str(error).split()) or type(error).__name__
        raise EntMTPError(
            f"heads: the multi-token-prediction layers of model type '{kind}' can't be loaded ({reason});"
            " give a folder that holds their weights, or train heads with 'entmtp train'"
        ) from error
    return NativeHeads(backbone, layers)
