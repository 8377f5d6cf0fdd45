"""Tensors of published EAGLE-3 heads (:mod:`entmtp.heads.importing.eagle3` lists them)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from entmtp.heads.importing.eagle3_config import Eagle3Fields
from entmtp.heads.importing.tensors import Tensors


@dataclass(frozen=True)
class Eagle3Sizes:
    """Sizes and variants that decide the tensors' shapes.

    Attributes:
        hidden: width of the heads' layers; ``model_hidden`` of the model's states.
        features: number of the model's states that are read.
        bias, output_bias: whether queries, keys and values have a bias, and the projection after attention.
        norms_features: whether the states have one norm; ``norms_each_feature``: whether each has its own.
    """

    hidden: int
    model_hidden: int
    inner: int
    heads: int
    key_heads: int
    head_dim: int
    features: int
    vocab: int
    bias: bool
    output_bias: bool
    norms_heads: bool
    norms_features: bool
    norms_each_feature: bool

    @classmethod
    def of(cls, fields: Eagle3Fields, features: int, *, norms_heads: bool) -> Eagle3Sizes:
        """The sizes of a configuration."""
        return cls(
            hidden=fields.hidden_size,
            model_hidden=fields.target_hidden_size or fields.hidden_size,
            inner=fields.intermediate_size,
            heads=fields.num_attention_heads,
            key_heads=fields.key_heads,
            head_dim=fields.width_of_a_head,
            features=features,
            vocab=fields.vocab_size,
            # A Qwen2's projection after attention has none, and its configuration does not say so.
            bias=fields.attention_bias or fields.model_type == "qwen2",
            output_bias=fields.attention_bias and fields.model_type != "qwen2",
            norms_heads=norms_heads,
            norms_features=bool(fields.norm_before_fc),
            norms_each_feature=bool(fields.fc_norm),
        )


def layer_parameters(tensors: Tensors, sizes: Eagle3Sizes, layer: int, prefix: str) -> dict[str, torch.Tensor]:
    """Parameters of a decoder layer whose tensors' names begin with ``prefix``."""
    hidden, head_dim, inner = sizes.hidden, sizes.head_dim, sizes.inner
    width = hidden if layer else 2 * hidden
    queries, keys = sizes.heads * head_dim, sizes.key_heads * head_dim
    parts = {"q": queries, "k": keys, "v": keys}
    frequencies = f"{prefix}self_attn.rotary_emb.inv_freq"
    if frequencies in tensors:
        tensors.take(frequencies, head_dim // 2)  # a copy of what the configuration says

    def taken(name: str, *shape: int) -> torch.Tensor:
        return tensors.take(f"{prefix}{name}", *shape)

    parameters = {
        "qkv.weight": torch.cat([taken(f"self_attn.{each}_proj.weight", size, width) for each, size in parts.items()]),
        "attention_output.weight": taken("self_attn.o_proj.weight", hidden, queries),
        "gate_up.weight": torch.cat([taken(f"mlp.{each}_proj.weight", inner, hidden) for each in ("gate", "up")]),
        "down.weight": taken("mlp.down_proj.weight", hidden, inner),
        "input_norm": taken("input_layernorm.weight", hidden),
        "mlp_norm": taken("post_attention_layernorm.weight", hidden),
    }
    if not layer:
        parameters["hidden_norm"] = taken("hidden_norm.weight", hidden)
    if sizes.bias:
        parameters["qkv.bias"] = torch.cat([taken(f"self_attn.{each}_proj.bias", size) for each, size in parts.items()])
    if sizes.output_bias:
        parameters["attention_output.bias"] = taken("self_attn.o_proj.bias", hidden)
    if sizes.norms_heads:
        parameters |= {
            "query_norm": taken("self_attn.q_norm.weight", head_dim),
            "key_norm": taken("self_attn.k_norm.weight", head_dim),
        }
    return {f"weights.layers.{layer}.{name}": tensor for name, tensor in parameters.items()}


def other_parameters(tensors: Tensors, sizes: Eagle3Sizes, draft_vocab: int) -> dict[str, torch.Tensor]:
    """Parameters outside the decoder layers."""
    width = sizes.features * sizes.model_hidden
    parameters = {
        "fc": tensors.take("fc.weight", sizes.hidden, width),
        "norm": tensors.take("norm.weight", sizes.hidden),
    }
    if "lm_head.weight" in tensors:
        parameters["output"] = tensors.take("lm_head.weight", draft_vocab, sizes.hidden)
    if "embed_tokens.weight" in tensors:
        parameters["embeddings"] = tensors.take("embed_tokens.weight", sizes.vocab, sizes.hidden)
    if sizes.norms_features:
        parameters["features_norm"] = tensors.take("input_norm.weight", width)
    if sizes.norms_each_feature:
        norms = [tensors.take(f"fc_norm.{number}.weight", sizes.model_hidden) for number in range(sizes.features)]
        parameters["features_norm"] = torch.cat(norms)
    return {f"weights.{name}": tensor for name, tensor in parameters.items()}
