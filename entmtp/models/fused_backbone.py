"""A backbone of the fused kernels alone: the weights of a model, and none of transformers' code."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, cast

import torch

from entmtp.models.backbone import Backbone
from entmtp.models.bare_model import BareModel
from entmtp.models.cache import BufferShape, KvRange, TreeCache
from entmtp.models.kernels.block_weight import weight_of
from entmtp.models.kernels.choices import CHOICES
from entmtp.models.kernels.fused_decoder import FusedDecoder
from entmtp.models.masks import AttentionWindow
from entmtp.models.states import States
from entmtp.settings import Kernels

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from entmtp.models.kernels.fused_linear import FusedLinear


class FusedBackbone(Backbone):
    """A causal LM in float32 on a CPU. No layer has a sliding window."""

    @torch.inference_mode()
    def __init__(self, bare: BareModel, kernels: Kernels) -> None:
        """Pack the weights for ``kernels``, one of the choices that fuse layers."""
        super().__init__(bare, bare.config, kernels)
        self._bare = bare
        rows = BufferShape(bare.config.num_key_value_heads, bare.config.head_dim, self.dtype, self.device)
        self.cache_shapes = [(rows, rows)] * bare.config.num_hidden_layers
        self._decoder = FusedDecoder(bare.model, bare.lm_head, CHOICES[kernels].digits)
        output_layer = cast("type[FusedLinear]", self.make_layer)
        self._output = output_layer(weight_of(bare.lm_head), bare.lm_head.bias)

    @cached_property
    def model(self) -> PreTrainedModel:
        """transformers' model with the same weights, built when it is first read."""
        from entmtp.models.transformers_model import transformers_model

        return transformers_model(self._bare)

    def release(self) -> None:
        self._bare.release()

    @property
    def input_layer(self) -> torch.nn.Module:
        return self._bare.model.embed_tokens

    @property
    def output_layer(self) -> torch.nn.Module:
        return self._bare.lm_head

    @property
    def eos_token_ids(self) -> frozenset[int]:
        eos = self._bare.config.eos_token_id
        return frozenset([] if eos is None else [eos])

    def _forward(
        self,
        tokens: torch.Tensor,
        window: AttentionWindow,
        kv_range: KvRange,
        cache: TreeCache,
        feature_layers: Sequence[int],
    ) -> States:
        states: States = self._decoder(tokens, window, None, cache, feature_layers)
        return states

    def _output_logits(self, states: torch.Tensor) -> torch.Tensor:
        return self._output.forward(states)

    def _verify(
        self,
        tokens: torch.Tensor,
        window: AttentionWindow,
        kv_range: KvRange,
        cache: TreeCache,
        feature_layers: Sequence[int],
    ) -> tuple[torch.Tensor, States]:
        return self._decoder.verify(tokens, window, None, cache, feature_layers, self._output)
