"""Tiny Hydra++ heads: published checkpoints, their decoder layer's formula in plain torch, and attached heads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import linear, silu
from transformers import PreTrainedModel

from entmtp.heads.hydra_plus_plus import HydraPlusPlusConfig, HydraPlusPlusHeads
from entmtp.models.backbone import Backbone
from tests.helpers.published_checkpoints import Model, Published, hydra

PREFIX = "prefix_embeding_layer."
_LAYER = f"{PREFIX}layers.0."


@dataclass(frozen=True)
class HydraPlusPlusShape:
    """Fields of the layer that come from the model's configuration; defaults as in the tiny Llama."""

    heads: int = 4
    key_heads: int = 2
    inner: int = 64
    eps: float = 1e-6
    theta: float = 10_000.0

    @classmethod
    def of(cls, model: PreTrainedModel) -> HydraPlusPlusShape:
        config: Any = model.config
        return cls(
            config.num_attention_heads,
            config.num_key_value_heads,
            config.intermediate_size,
            config.rms_norm_eps,
            config.rope_parameters["rope_theta"],
        )


def published_hydra_plus_plus(
    model: Model, shape: HydraPlusPlusShape, layers: int = 4, seed: int = 0, **config: Any
) -> Published:
    """A checkpoint in the authors' layout, with a decoder layer before the heads."""
    fields = {"hydra_head_arch": "prefix-mlp"} | config
    published = hydra(model, layers=layers, dropout=True, seed=seed, **fields)
    generator = torch.Generator().manual_seed(seed + 1)
    hidden, dim = model.hidden, model.hidden // shape.heads
    shapes = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (dim * shape.key_heads, hidden),
        "self_attn.v_proj": (dim * shape.key_heads, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (shape.inner, hidden),
        "mlp.up_proj": (shape.inner, hidden),
        "mlp.down_proj": (hidden, shape.inner),
    }
    for name, size in shapes.items():
        published.tensors[f"{_LAYER}{name}.weight"] = torch.randn(size, generator=generator) * 2 / size[-1] ** 0.5
    for name in ("layers.0.input_layernorm", "layers.0.post_attention_layernorm", "norm"):
        published.tensors[f"{PREFIX}{name}.weight"] = 1 + 0.2 * torch.randn(hidden, generator=generator)
    published.tensors[f"{PREFIX}embed_tokens.weight"] = torch.randn(model.vocab, hidden, generator=generator)
    return published


def hydra_plus_plus_states(published: Published, shape: HydraPlusPlusShape, hidden: torch.Tensor) -> torch.Tensor:
    """The heads' input states ``[n, hidden]`` at each token of a text with decoder states ``hidden [n, hidden]``."""
    tensors = published.tensors
    count, size = hidden.shape
    dim = size // shape.heads

    def norm(states: torch.Tensor, name: str) -> torch.Tensor:
        scale = states.pow(2).mean(-1, keepdim=True).add(shape.eps).rsqrt()
        return states * scale * tensors[f"{PREFIX}{name}.weight"]

    def layer(states: torch.Tensor, name: str) -> torch.Tensor:
        return linear(states, tensors[f"{_LAYER}{name}.weight"])

    def rotated(states: torch.Tensor) -> torch.Tensor:
        speeds = shape.theta ** (-torch.arange(0, dim, 2) / dim)
        angles = torch.arange(count)[:, None, None] * speeds
        left, right = states.chunk(2, dim=-1)
        return torch.cat(
            [left * angles.cos() - right * angles.sin(), right * angles.cos() + left * angles.sin()], dim=-1
        )

    normed = norm(hidden, "layers.0.input_layernorm")
    queries = rotated(layer(normed, "self_attn.q_proj").view(count, shape.heads, dim))
    keys = rotated(layer(normed, "self_attn.k_proj").view(count, shape.key_heads, dim))
    values = layer(normed, "self_attn.v_proj").view(count, shape.key_heads, dim)
    shared = shape.heads // shape.key_heads
    keys, values = keys.repeat_interleave(shared, 1), values.repeat_interleave(shared, 1)
    scores = torch.einsum("ihd,jhd->hij", queries, keys) / dim**0.5
    scores = scores.masked_fill(torch.ones(count, count).triu(1).bool(), -torch.inf)
    mixed = torch.einsum("hij,jhd->ihd", scores.softmax(-1), values).reshape(count, size)
    states = hidden + layer(mixed, "self_attn.o_proj")
    normed = norm(states, "layers.0.post_attention_layernorm")
    states = states + layer(silu(layer(normed, "mlp.gate_proj")) * layer(normed, "mlp.up_proj"), "mlp.down_proj")
    return norm(states, "norm")


def random_hydra_plus_plus_heads(backbone: Backbone, seed: int = 0) -> HydraPlusPlusHeads:
    """Attached heads with random weights, for a tiny Llama."""
    shape = HydraPlusPlusShape.of(backbone.model)
    layer = {
        "hidden_size": backbone.hidden_size,
        "intermediate_size": shape.inner,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.key_heads,
    }
    config = HydraPlusPlusConfig(
        hidden_size=backbone.hidden_size,
        vocab_size=backbone.vocab_size,
        draft_vocab_size=backbone.vocab_size,
        num_heads=4,
        num_layers=2,
        outputs=4,
        layer=layer,
    )
    heads = HydraPlusPlusHeads(config)
    generator = torch.Generator().manual_seed(seed)
    for parameter in heads.parameters():
        drawn = torch.randn(parameter.shape, generator=generator)
        parameter.data = 1 + 0.2 * drawn if parameter.ndim == 1 else drawn / parameter.shape[-1] ** 0.5
    heads.attach(backbone)
    return heads
