"""All decoder layers of a Llama-like model in one call, instead of about seventy operators per layer.

A layer has two halves. Attention: RMSNorm, one merged product for queries, keys and values, rotary embedding,
attention, and a product that adds the residual. MLP: RMSNorm, one gated product, and a product that adds the residual.
The self-test compares the fused model with the model's own layers. So a model whose code changes is refused instead of
computed wrongly.
"""

from __future__ import annotations

import copy
from ctypes import byref
from typing import Any

import torch
from torch import nn
from torch.profiler import record_function
from transformers import Cache
from transformers.activations import ACT2FN

from entmtp.models.cache import TreeCache
from entmtp.models.kernels.block_weight import weight_of
from entmtp.models.kernels.compiled import Layer, Matrix, Pass, Sizes, library
from entmtp.models.kernels.packed_weight import PackedWeight, merged, pack

# By name, because importing the code of every model would take longer than loading one.
KINDS = {"LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer"}


class FusedLayers(nn.Module):
    """Replacement of a model's decoder layers, in float32, for inference with a :class:`TreeCache` only."""

    def __init__(self, layers: nn.ModuleList) -> None:
        super().__init__()
        first: Any = layers[0]
        attention, mlp = first.self_attn, first.mlp
        # Stored because the structures below only have their addresses.
        self._weights = [_LayerWeights(layer) for layer in layers]
        self._layers = (Layer * len(layers))(*(weights.structure() for weights in self._weights))
        self._library = library({each.format for weights in self._weights for each in weights.packed})
        self._sizes = Sizes(
            eps=first.input_layernorm.variance_epsilon,
            scaling=attention.scaling,
            hidden=mlp.gate_proj.in_features,
            inner=mlp.gate_proj.out_features,
            heads=attention.q_proj.out_features // attention.head_dim,
            kv_heads=attention.k_proj.out_features // attention.head_dim,
            dim=attention.head_dim,
        )

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        past_key_values: Cache | None = None,
        **_: object,
    ) -> torch.Tensor:
        """``[batch, n, hidden_size] -> [batch, n, hidden_size]``, with the arguments of a decoder layer."""
        assert position_embeddings is not None
        assert attention_mask is not None
        assert isinstance(past_key_values, TreeCache)
        batch, n, _width = hidden_states.shape
        (pool,) = past_key_values.pools.values()
        mapping = past_key_values.slot_mapping
        cos, sin, mask, rows = (
            each.contiguous() for each in (*position_embeddings, attention_mask, mapping.cache_rows)
        )
        states = hidden_states.clone(memory_format=torch.contiguous_format)
        run = Pass(
            cos=cos.data_ptr(),
            sin=sin.data_ptr(),
            mask=mask.data_ptr(),
            slots=mapping.slots.data_ptr(),
            rows=rows.data_ptr(),
            pool=pool.data_ptr(),
            batch=batch,
            n=n,
            mask_rows=mask.shape[-2],
            first=mapping.kv_range.first,
            last=mapping.kv_range.last,
            pool_slots=pool.shape[1],
            capacity=pool.shape[-2],
            threads=torch.get_num_threads(),
        )
        with record_function("entmtp::layers"):
            self._library.entmtp_layers(
                self._layers, len(self._layers), byref(self._sizes), byref(run), states.data_ptr()
            )
        return states


class _LayerWeights:
    """A decoder layer's packed weights and its vectors, which are None where it has none."""

    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        projections = attention.q_proj, attention.k_proj, attention.v_proj
        biases = [projection.bias for projection in projections]
        query_norm, key_norm = (
            getattr(getattr(attention, name, None), "weight", None) for name in ("q_norm", "k_norm")
        )
        self._qkv = [pack(weight) for weight in merged([weight_of(each) for each in projections])]
        others = {"output": attention.o_proj, "gates": mlp.gate_proj, "values": mlp.up_proj, "down": mlp.down_proj}
        self._matrices = {name: pack(weight_of(projection)) for name, projection in others.items()}
        self._vectors = {
            "input_norm": layer.input_layernorm.weight,
            "qkv_bias": None if biases[0] is None else torch.cat(biases),
            "query_norm": query_norm,
            "key_norm": key_norm,
            "output_bias": attention.o_proj.bias,
            "middle_norm": layer.post_attention_layernorm.weight,
            "down_bias": mlp.down_proj.bias,
        }

    @property
    def packed(self) -> list[PackedWeight]:
        """All packed weights."""
        return [*self._qkv, *self._matrices.values()]

    def structure(self) -> Layer:
        """Their addresses, for the kernels."""
        return Layer(
            qkv=(Matrix * 3)(*(weight.matrix for weight in self._qkv)),
            **{name: weight.matrix for name, weight in self._matrices.items()},
            **{name: vector.data_ptr() for name, vector in self._vectors.items() if vector is not None},
        )


def _can_fuse(layers: nn.ModuleList, config: Any) -> bool:
    """Whether all layers are of one known kind and use the same mask."""
    kinds = {type(layer) for layer in layers}
    known = {kind for kind in kinds if kind.__name__ in KINDS and kind.__module__.startswith("transformers.models.")}
    if len(known) != 1 or known != kinds or len(set(getattr(config, "layer_types", None) or ["same"])) > 1:
        return False
    mlps: list[Any] = [layer.mlp for layer in layers]
    return all(type(mlp.act_fn) is type(ACT2FN["silu"]) and mlp.gate_proj.bias is None for mlp in mlps)


@torch.inference_mode()
def with_fused_layers(decoder: nn.Module, config: Any) -> nn.Module | None:
    """A copy of ``decoder`` with one :class:`FusedLayers` for all its layers; everything else is shared.

    Returns None if the layers are of an unknown kind.
    """
    layers = getattr(decoder, "layers", None)
    if not isinstance(layers, nn.ModuleList) or not _can_fuse(layers, config):
        return None
    fused = copy.copy(decoder)
    fused._modules = decoder._modules | {"layers": nn.ModuleList([FusedLayers(layers)])}
    return fused
