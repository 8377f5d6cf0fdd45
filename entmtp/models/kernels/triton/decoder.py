"""A Llama-like decoder on a GPU in about twelve kernels a layer, instead of about forty-five.

A layer is add and norm, a product for queries, keys and values, rotary embedding and cache write, tree attention, a
product, add and norm, a product for gates and values, their gated product, and a product. Products are PyTorch's, with
merged weights. Start, lengths and slots are read on the device, so that a captured pass serves every context. The
self-test compares the decoder with the model's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from entmtp.models.cache import TreeCache
from entmtp.models.kernels.triton.add_norm import add_norm
from entmtp.models.kernels.triton.ancestor_bits import MAX_NODES, ancestor_bits
from entmtp.models.kernels.triton.layer_weights import LayerWeights
from entmtp.models.kernels.triton.rope_write import rope_write
from entmtp.models.kernels.triton.silu_mul import silu_mul
from entmtp.models.kernels.triton.tree_attention import NO_WINDOW, tree_attention
from entmtp.models.known_kinds import is_known
from entmtp.models.masks import AttentionWindow
from entmtp.models.states import States


class TritonDecoder:
    """Stand-in for a model's decoder in passes of at most 64 tokens a request, for inference with a tree cache."""

    def __init__(self, decoder: Any) -> None:
        self._embed: nn.Embedding = decoder.embed_tokens
        self._rotary = decoder.rotary_emb
        self._layers = [LayerWeights(layer) for layer in decoder.layers]
        self._norm: torch.Tensor = decoder.norm.weight
        self._eps: float = decoder.norm.variance_epsilon

    def takes(self, tokens: torch.Tensor) -> bool:
        """Whether a pass over ``tokens [batch, n]`` is narrow enough."""
        return tokens.shape[1] <= MAX_NODES

    def __call__(
        self,
        tokens: torch.Tensor,
        window: AttentionWindow,
        sliding_windows: Sequence[int | None],
        cache: TreeCache,
        feature_layers: Sequence[int],
    ) -> States:
        """States ``[batch, n, ...]`` of ``tokens [batch, n]``, which see the rows of ``window``.

        ``sliding_windows`` are the layers' sizes, None without one. Keys and values are stored by the cache's slot
        mapping. The features are the states that enter ``feature_layers``, or the decoder states where none are named.
        """
        batch, n = tokens.shape
        mapping = cache.slot_mapping
        states = self._embed(tokens)
        cosines, sines = (each.reshape(batch * n, -1).contiguous() for each in self._rotary(states, window.positions))
        states = states.view(batch * n, -1)
        features = states.new_empty(batch * n, len(feature_layers), states.shape[1])
        bits, positions = ancestor_bits(window.tree_mask), window.positions.contiguous()
        rows, start = mapping.cache_rows.contiguous(), mapping.start.contiguous()
        update = None
        for number, (layer, buffers) in enumerate(zip(self._layers, cache.tree_layers)):
            normed = add_norm(states, update, layer.input_norm, layer.eps)
            for at in (at for at, requested in enumerate(feature_layers) if requested == number):
                features[:, at] = states
            keys, values = buffers.keys, buffers.values
            qkv = layer.qkv(normed)
            rope_write(
                qkv, cosines, sines, layer.query_norm, layer.key_norm, layer.head_eps, keys, values, mapping.slots, rows
            )
            size = sliding_windows[number]
            attended = tree_attention(
                qkv, keys, values, mapping.slots, start, bits, positions, layer.scaling, size or NO_WINDOW
            )
            normed = add_norm(states, layer.output(attended), layer.middle_norm, layer.eps)
            update = layer.down(silu_mul(layer.gate_up(normed)))
        hidden = add_norm(states, update, self._norm, self._eps).view(batch, n, -1)
        return States(hidden, features.view(batch, n, -1)) if feature_layers else States.of_hidden(hidden)


def unsupported_reason(decoder: Any) -> str | None:
    """Reason why the kernels can't run a model's decoder, or None."""
    from transformers.activations import ACT2FN

    if not is_known(decoder, "Model"):
        return f"can't run a {type(decoder).__name__}"
    for layer in decoder.layers:
        if not is_known(layer, "DecoderLayer"):
            return f"can't run a {type(layer).__name__} whose code was changed, or which has hooks"
        if type(layer.mlp.act_fn) is not type(ACT2FN["silu"]):
            return f"can't run the activation {type(layer.mlp.act_fn).__name__}"
        kinds = {type(each) for name, each in layer.named_modules() if name.endswith("_proj")}
        if kinds != {nn.Linear}:
            return f"can't run weights of {', '.join(sorted(kind.__name__ for kind in kinds - {nn.Linear}))}"
    return None
