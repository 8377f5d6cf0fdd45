"""EAGLE-3 heads (arXiv 2503.01840): a decoder layer that reads the model's states at several depths.

For the token at position p + 1, with ``f_p`` the states of position p that enter a low, a middle and a high decoder
layer of the model, side by side:

    ``g = fc(f_p)``, and for a drafted token the parent's ``a`` instead
    ``x = [RMS_input(embedding of token p + 1), RMS_hidden(g)]``
    ``a = g + o_proj(attention(x))``, attending to the layer's own keys and values of the text and the node's ancestors
    ``a = a + down(silu(gate n) * up n)`` with ``n = RMS_post(a)``
    ``logits = output(RMS(a))`` over the draft vocabulary, for the token at position p + 2

Published variants (:class:`~entmtp.heads.eagle3.configuration.Eagle3Config` has their fields): ``RMS_hidden(g) +
o_proj(...)`` with ``norm_before_residual``; norms of ``f_p``; ``RMS(a)`` as the children's ``g`` with ``norm_output``;
norms of queries and keys; further plain decoder layers after the first. Rotary positions are the tokens'. Those of the
authors are one lower, which makes no difference since attention depends on their distances alone.

Sources: ``eagle/model/cnets.py`` in github.com/SafeAILab/EAGLE; ``src/speculators/models/eagle3`` in
github.com/vllm-project/speculators.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

import torch

from entmtp.heads.autoregressive.heads import AutoregressiveHeads
from entmtp.heads.eagle3.configuration import Eagle3Config, default_feature_layers
from entmtp.heads.eagle3.drafter import DEFERRED_TOKEN, Eagle3Drafter
from entmtp.heads.eagle3.layers import Eagle3Layers
from entmtp.heads.eagle3.weights import Eagle3Weights
from entmtp.heads.linear_weights import LinearWeights
from entmtp.heads.registry import register_heads
from entmtp.methods import EAGLE3
from entmtp.models.cache import DraftCacheLayout
from entmtp.models.kernels.block_weight import Weight, embed
from entmtp.models.kernels.fused_draft import DraftLayer, FusedDraftDecoder
from entmtp.models.kernels.fused_linear import DraftLinear
from entmtp.models.kernels.fused_projection import FusedProjection

if TYPE_CHECKING:
    from entmtp.models.backbone import Backbone
    from entmtp.models.cache import TreeCache


@register_heads
class Eagle3Heads(AutoregressiveHeads):
    """Heads whose states are ``a``, or ``RMS(a)`` with ``norm_output``."""

    config_class = Eagle3Config
    config: Eagle3Config
    kind = EAGLE3
    is_trainable = True
    layers: Eagle3Layers

    def __init__(self, config: Eagle3Config) -> None:
        super().__init__(config)
        self.weights = Eagle3Weights(config)
        self._decoder: FusedDraftDecoder | None = None

    def train(self, mode: bool = True) -> Self:
        self._decoder = None  # it copied the weights, which training changes
        return super().train(mode)

    @property
    def feature_layers(self) -> tuple[int, ...]:
        return tuple(self.config.feature_layers)

    def attach(self, backbone: Backbone) -> Self:
        if not self.config.feature_layers:
            self.config.feature_layers = default_feature_layers(backbone.config.num_hidden_layers)
        attached = super().attach(backbone)
        self.layers = Eagle3Layers(
            self.config, self.weights, self.linear, self._embed, self.fused_decoder, backbone.device
        )
        return attached

    def linear_weights(self) -> dict[str, LinearWeights]:
        return super().linear_weights() | self.weights.linear_weights()

    def bind_output(self, layer: Any) -> None:
        if self.weights.output is None:
            super().bind_output(layer)

    @property
    def output_layers(self) -> Sequence[Weight]:
        return super().output_layers if self.weights.output is None else [self.weights.output]

    def draft_logits(self, states: torch.Tensor, head: int | None = None) -> torch.Tensor:
        if (decoder := self.fused_decoder()) is not None:
            return decoder.logits(states, self.fused_output)
        return self.linear("output", self.output_states(states))

    def top_k(self, states: torch.Tensor, count: int, head: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        if (decoder := self.fused_decoder()) is not None:
            return decoder.top_k(states, self.fused_output, self.draft_vocab, count)
        return super().top_k(states, count, head)

    def output_states(self, states: torch.Tensor) -> torch.Tensor:
        """Inputs of the output layer, of states ``[..., draft_hidden_size]``."""
        return states if self.config.norm_output else self.layers.norm(states, self.weights.norm)

    @property
    def cache_layout(self) -> DraftCacheLayout:
        layout = super().cache_layout
        return replace(layout, state_buffers=(*layout.state_buffers, DEFERRED_TOKEN))

    def drafter(self, cache: TreeCache) -> Eagle3Drafter:
        return Eagle3Drafter(self, self.layers, cache)

    @property
    def fused_output(self) -> DraftLinear:
        """The output layer where the compiled kernels draft."""
        output = self.inference_layer("output")
        assert isinstance(output, DraftLinear)
        return output

    def fused_decoder(self) -> FusedDraftDecoder | None:
        """The compiled kernels' decoder, which has its own copy of the weights; None where they don't draft."""
        if not self._is_fused or self.training or not torch.is_inference_mode_enabled():
            return None
        if self._decoder is None:
            own = self.weights.embeddings
            self._decoder = FusedDraftDecoder(
                self._projection(),
                [self._draft_layer(number) for number in range(self.config.num_layers)],
                self.input_embeddings if own is None else own,
                self.weights.layer(0).input_norm,
                self.weights.norm,
                self.layers.rotary,
                self._weights("output")[0],
                kv_heads=self.config.num_key_value_heads,
                head_dim=self.config.head_dim,
                eps=self.config.rms_norm_eps,
                adds_to_normalized=self.config.norm_before_residual,
                keeps_states=not self.config.norm_output,
            )
        return self._decoder

    def _projection(self) -> FusedProjection:
        norm, groups = self.weights.features_norm, self.config.num_features if self.config.fc_norm else 1
        return FusedProjection(*self._weights("fc"), norm, groups, self.config.rms_norm_eps)

    def _draft_layer(self, number: int) -> DraftLayer:
        layer, inner = self.weights.layer(number), self.config.intermediate_size
        qkv, qkv_bias = self._weights(f"{number} qkv")
        output, output_bias = self._weights(f"{number} attention output")
        gate_up, _ = self._weights(f"{number} gate up")
        return DraftLayer(
            qkv=qkv,
            output=output,
            gates=gate_up[:inner],
            values=gate_up[inner:],
            down=self._weights(f"{number} down")[0],
            input_norm=layer.input_norm if layer.hidden_norm is None else layer.hidden_norm,
            middle_norm=layer.mlp_norm,
            qkv_bias=qkv_bias,
            output_bias=output_bias,
            query_norm=layer.query_norm,
            key_norm=layer.key_norm,
        )

    def _embed(self, tokens: torch.Tensor) -> torch.Tensor:
        own = self.weights.embeddings
        return embed(self.input_embeddings if own is None else own, tokens)
