"""A decoder layer's weights as few merged tensors, of which the model's own layers keep slices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Product:
    """A product with a weight ``[out, in]``, and a bias ``[out]`` or None, of one layer or of several."""

    weight: torch.Tensor
    bias: torch.Tensor | None

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        """``[rows, in] -> [rows, out]``."""
        return nn.functional.linear(states, self.weight, self.bias)


@torch.no_grad()
def merge(layers: Sequence[nn.Linear]) -> Product:
    """Merge ``layers`` that read the same states, all with or all without a bias.

    Their own weights become slices of the merged one, so that they take no further memory.
    """
    weight = torch.cat([layer.weight.detach() for layer in layers])
    for layer, part in zip(layers, weight.split([layer.out_features for layer in layers]), strict=True):
        layer.weight.data = part
    biases = [layer.bias.detach() for layer in layers if layer.bias is not None]
    return Product(weight, torch.cat(biases) if biases else None)


class LayerWeights:
    """A Llama-like decoder layer's products and norms.

    Attributes:
        qkv, output, gate_up, down: its products.
        input_norm, middle_norm: weights of the RMS norms, with ``eps``.
        query_norm, key_norm: weights of the heads' norms, with ``head_eps``; None where a layer has none.
        scaling: factor of attention scores.
    """

    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.qkv = merge([attention.q_proj, attention.k_proj, attention.v_proj])
        self.output = Product(attention.o_proj.weight, attention.o_proj.bias)
        self.gate_up = merge([mlp.gate_proj, mlp.up_proj])
        self.down = Product(mlp.down_proj.weight, mlp.down_proj.bias)
        self.input_norm: torch.Tensor = layer.input_layernorm.weight
        self.middle_norm: torch.Tensor = layer.post_attention_layernorm.weight
        self.eps: float = layer.input_layernorm.variance_epsilon
        norms = [getattr(attention, name, None) for name in ("q_norm", "k_norm")]
        self.query_norm, self.key_norm = (getattr(norm, "weight", None) for norm in norms)
        self.head_eps: float = getattr(norms[0], "variance_epsilon", self.eps)
        self.scaling: float = attention.scaling
