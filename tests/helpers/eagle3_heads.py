"""Tiny EAGLE-3 heads in their own format: random ones, and ones that know the model."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

from entmtp.heads.eagle3 import Eagle3Heads
from entmtp.heads.eagle3.configuration import Eagle3Config
from entmtp.heads.eagle3.weights import Eagle3LayerWeights
from entmtp.models.backbone import Backbone
from entmtp.models.build import build_backbone
from tests.helpers.random_weights import attached_at_random

_SHARP = 300.0
"""Attention score of a token to itself: rotary positions make that of all others lower by 60 or more."""
_LOUD = 100.0
"""Scale of what attention adds to the parent's state, which it must drown."""
_CONFIDENT = 4.0
"""Factor of the heads' logits: a tiny random model's own are almost even."""


def eagle3_heads(backbone: Backbone, seed: int = 0, **changes: Any) -> Eagle3Heads:
    """Attached heads with random weights that can guess every token, by the model's own output layer."""
    return attached_at_random(Eagle3Heads(eagle3_config(backbone, **changes)), backbone, seed)


def eagle3_config(backbone: Backbone, **changes: Any) -> Eagle3Config:
    """Sizes for a tiny model of two layers or more."""
    sizes: dict[str, Any] = {
        "hidden_size": backbone.hidden_size,
        "vocab_size": backbone.vocab_size,
        "draft_vocab_size": backbone.vocab_size,
        "model_fingerprint": backbone.fingerprint,
        "feature_layers": [0, 1],
        "draft_hidden_size": backbone.hidden_size,
        "intermediate_size": 24,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
    }
    return Eagle3Config(**(sizes | changes))


def sure_eagle3(model: PreTrainedModel, noise: float = 0.0) -> tuple[Backbone, Eagle3Heads]:
    """Heads that guess right as often as ``noise`` lets them: always without.

    Changes a Llama of 32 wide states in place so that each token depends on the last one alone. The heads attend to
    the drafted token itself and return its normalised embedding, as the model does.
    """
    for name, parameter in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            parameter.data.zero_()
    backbone = build_backbone(model)
    size, norm = backbone.hidden_size, model.get_decoder().norm.weight.data
    config = eagle3_config(
        backbone, num_key_value_heads=4, attention_bias=True, norm_before_residual=True, own_output=True
    )
    heads = Eagle3Heads(config)
    layer = heads.weights.layers[0]
    assert isinstance(layer, Eagle3LayerWeights)
    values = torch.cat([torch.eye(size), torch.zeros(size, size)], dim=1)
    values += noise * torch.randn(values.shape, generator=torch.Generator().manual_seed(0)) / size**0.5
    layer.qkv.weight.data = torch.cat([torch.zeros(2 * size, 2 * size), values])
    layer.qkv.bias.data.zero_()
    layer.qkv.bias.data[: 2 * size] = _SHARP**0.5 / 8**0.25
    layer.attention_output.weight.data = _LOUD * torch.eye(size)
    layer.down.weight.data.zero_()
    heads.weights.norm.data = _CONFIDENT * norm
    assert heads.weights.output is not None
    heads.weights.output.data = model.get_output_embeddings().weight.data.clone()
    return backbone, heads.attach(backbone)
