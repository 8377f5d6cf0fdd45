"""A Llama-like decoder in one call, instead of about seventy operators per layer.

A layer has two halves. Attention: RMSNorm, one merged product for queries, keys and values, rotary embedding,
attention, and a product that adds the residual. MLP: RMSNorm, one gated product, and a product that adds the residual.
The self-test compares the fused decoder with the model's own. So a model whose code changes is refused instead of
computed wrongly.
"""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import addressof, byref, c_int64
from typing import Any

import torch
from torch import nn

from entmtp.models.cache import SlotMapping, TreeCache
from entmtp.models.kernels.block_weight import BlockEmbedding, BlockWeight, weight_of
from entmtp.models.kernels.compiled import FORMATS, Layer, Matrix, Model, Pass, library, profiled
from entmtp.models.kernels.fused_linear import CompiledLinear, FusedLinear
from entmtp.models.kernels.packed_weight import PackedWeight, format_of, merged, pack
from entmtp.models.kernels.rotary_table import RotaryTable
from entmtp.models.known_kinds import is_known
from entmtp.models.masks import AttentionWindow
from entmtp.models.states import States

NO_WINDOW = 2**62
"""Sliding window of layers that have none, in positions."""


class FusedDecoder(nn.Module):
    """Replacement of a model's decoder, in float32, for inference with a :class:`TreeCache` only."""

    def __init__(self, decoder: Any, output_layer: nn.Module, digits: int) -> None:
        super().__init__()
        first = decoder.layers[0]
        attention, mlp = first.self_attn, first.mlp
        # Stored because the structures below only have their addresses.
        self._weights = [_LayerWeights(layer) for layer in decoder.layers]
        self._layers = (Layer * len(self._weights))(*(weights.structure() for weights in self._weights))
        embeddings = weight_of(decoder.embed_tokens)
        self._table = (embeddings.rows if isinstance(embeddings, BlockWeight) else embeddings.detach()).contiguous()
        self._norm = decoder.norm.weight
        self._rotary = RotaryTable(decoder.rotary_emb)
        self._library = library(
            {
                format_of(embeddings),
                format_of(weight_of(output_layer)),
                *(each.format for weights in self._weights for each in weights.packed),
            }
        )
        self._model = Model(
            embeddings=self._table.data_ptr(),
            layers=addressof(self._layers),
            norm=self._norm.data_ptr(),
            row_bytes=self._table.stride(0) * self._table.element_size(),
            count=len(self._layers),
            hidden=mlp.gate_proj.in_features,
            inner=mlp.gate_proj.out_features,
            heads=attention.q_proj.out_features // attention.head_dim,
            kv_heads=attention.k_proj.out_features // attention.head_dim,
            dim=attention.head_dim,
            eps=first.input_layernorm.variance_epsilon,
            scaling=attention.scaling,
            format=FORMATS.index(format_of(embeddings)),
            digits=digits,
        )

    def forward(
        self,
        tokens: torch.Tensor,
        window: AttentionWindow,
        sliding_window: int | None,
        cache: TreeCache,
        feature_layers: Sequence[int],
    ) -> States:
        """States ``[batch, n, ...]`` of ``tokens [batch, n]``, which see the rows of ``window``.

        Keys and values are stored by the cache's slot mapping. The features are the states that enter
        ``feature_layers``, or the decoder states where none are named.
        """
        states = self._states(tokens, feature_layers)
        self._run(tokens, window, sliding_window, cache, feature_layers, states)
        return states

    def verify(
        self,
        tokens: torch.Tensor,
        window: AttentionWindow,
        sliding_window: int | None,
        cache: TreeCache,
        feature_layers: Sequence[int],
        output: FusedLinear,
    ) -> tuple[torch.Tensor, States]:
        """Logits ``[batch, n, vocab_size]`` and states; arguments as :meth:`forward`, and the output layer."""
        states = self._states(tokens, feature_layers)
        logits = torch.empty(*tokens.shape, output.matrix.out, dtype=torch.float32)
        self._run(tokens, window, sliding_window, cache, feature_layers, states, output, logits)
        return logits, states

    def _states(self, tokens: torch.Tensor, feature_layers: Sequence[int]) -> States:
        """Memory for the states of a pass."""
        hidden = torch.empty(*tokens.shape, self._model.hidden, dtype=torch.float32)
        if not feature_layers:
            return States.of_hidden(hidden)
        return States(hidden, hidden.new_empty(*tokens.shape, len(feature_layers) * self._model.hidden))

    def _run(
        self,
        tokens: torch.Tensor,
        window: AttentionWindow,
        sliding_window: int | None,
        cache: TreeCache,
        feature_layers: Sequence[int],
        states: States,
        output: FusedLinear | None = None,
        logits: torch.Tensor | None = None,
    ) -> None:
        """Fill ``states``, and ``logits`` if the ``output`` layer is given."""
        layers = (c_int64 * len(feature_layers))(*feature_layers)
        run_pass(
            self._library,
            self._model,
            tokens,
            window,
            cache.slot_mapping,
            cache.tree_layers[0].keys,
            self._rotary,
            states.hidden,
            output,
            logits,
            window_size=NO_WINDOW if sliding_window is None else sliding_window,
            feature_layers=addressof(layers),
            features=states.features.data_ptr(),
            feature_count=len(feature_layers),
        )


def run_pass(
    kernels: Any,
    model: Model,
    tokens: torch.Tensor,
    window: AttentionWindow,
    mapping: SlotMapping,
    keys: torch.Tensor,
    rotary: RotaryTable,
    states: torch.Tensor,
    output: CompiledLinear | None = None,
    logits: torch.Tensor | None = None,
    *,
    first_row: int = 1,
    window_size: int = NO_WINDOW,
    **features: int,
) -> None:
    """Fill the ``states [batch, n, hidden_size]`` of ``tokens [batch, n]``, and ``logits`` with the ``output`` layer.

    ``keys`` are those of the first layer in the cache; values and other layers follow them in memory. Cache rows before
    ``first_row`` have no keys. ``features`` are fields of a pass.
    """
    batch, n = tokens.shape
    table, angles = rotary.rows(window.positions, mapping.kv_range.last)
    inputs = {
        "tokens": tokens,
        "positions": window.positions,
        "prefix": window.prefix_lengths.expand(batch, n),
        "rows": mapping.cache_rows,
        "angles": angles,
        "slots": mapping.slots,
        "start": window.start,
        "tree": window.tree_mask,
        "tree_positions": window.tree_positions,
    }
    inputs = {name: tensor.contiguous() for name, tensor in inputs.items()}
    run = Pass(
        **{name: tensor.data_ptr() for name, tensor in inputs.items()},
        rotary=table.data_ptr(),
        pool=keys.data_ptr(),
        batch=batch,
        n=n,
        tree_rows=window.tree_mask.shape[2],
        first=max(first_row, mapping.kv_range.first),
        last=mapping.kv_range.last,
        pool_slots=keys.shape[0],
        capacity=keys.shape[2],
        window=window_size,
        threads=torch.get_num_threads(),
        **features,
    )
    with profiled("entmtp::decode"):
        kernels.entmtp_decode(
            byref(model),
            byref(run),
            states.data_ptr(),
            None if output is None else byref(output.matrix),
            None if logits is None else logits.data_ptr(),
        )


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


def _can_fuse(decoder: Any, config: Any) -> bool:
    """Whether decoder and layers are of a known kind, and all layers use the same mask."""
    from transformers.activations import ACT2FN

    if not is_known(decoder, "Model") or len(set(getattr(config, "layer_types", None) or ["same"])) > 1:
        return False
    return type(decoder.embed_tokens) in (nn.Embedding, BlockEmbedding) and all(
        is_known(layer, "DecoderLayer")
        and type(layer.mlp.act_fn) is type(ACT2FN["silu"])
        and layer.mlp.gate_proj.bias is None
        for layer in decoder.layers
    )


@torch.inference_mode()
def fused_decoder(decoder: nn.Module, output_layer: nn.Module, config: Any, digits: int) -> FusedDecoder | None:
    """A :class:`FusedDecoder` that does what ``decoder`` does, with packed copies of its layers' weights.

    It can run the model's ``output_layer`` too. Products with GGUF's blocks round their inputs to so many
    ``digits`` of 8 bits, or not with 0. Returns None if the decoder is of an unknown kind.
    """
    return FusedDecoder(decoder, output_layer, digits) if _can_fuse(decoder, config) else None
