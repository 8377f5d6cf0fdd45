"""Tiny DFlash and DSpark heads in their own format: random ones, and ones that know the model."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

from entmtp.heads.dflash import DFlashHeads
from entmtp.heads.dflash.configuration import DFlashConfig
from entmtp.models.backbone import Backbone
from entmtp.models.build import build_backbone
from entmtp.models.kernels.block_weight import dequantized
from tests.helpers.random_weights import attached_at_random
from tests.helpers.tiny_models import tiny_model

_CONFIDENT = 4.0
"""Factor of the heads' logits: a tiny random model's own are almost even."""

KNOWING_VOCAB = 28
KNOWN_ODDS = 4.0
"""Log-odds that :func:`knowing_dspark` estimates after a token, positive after even ones."""


def dflash_heads(backbone: Backbone, seed: int = 0, **changes: Any) -> DFlashHeads:
    """Attached heads with random weights that can guess every token, by the model's own output layer."""
    return attached_at_random(DFlashHeads(dflash_config(backbone, **changes)), backbone, seed)


def dflash_config(backbone: Backbone, **changes: Any) -> DFlashConfig:
    """Sizes for a tiny model of two layers or more; five guesses, those of the mask tokens."""
    sizes: dict[str, Any] = {
        "hidden_size": backbone.hidden_size,
        "vocab_size": backbone.vocab_size,
        "draft_vocab_size": backbone.vocab_size,
        "model_fingerprint": backbone.fingerprint,
        "feature_layers": [0, 1],
        "num_heads": 5,
        "block_size": 6,
        "mask_token": 3,
        "num_layers": 2,
        "intermediate_size": 24,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
    }
    return DFlashConfig(**(sizes | changes))


def dspark_heads(backbone: Backbone, seed: int = 0, **changes: Any) -> DFlashHeads:
    """Heads as of :func:`dflash_heads` with DSpark's bias and estimate, whose block guesses from the root on."""
    dspark = {"root_guesses": True, "num_heads": 6, "markov_rank": 5}
    estimate = {"has_confidence": True, "confidence_reads_token": True}
    return dflash_heads(backbone, seed, **(dspark | estimate | changes))


def sure_dspark(model: PreTrainedModel, noise: float = 0.0, **changes: Any) -> tuple[Backbone, DFlashHeads]:
    """Heads that guess right as often as ``noise`` lets them: always without.

    Changes a Llama in place so that each token depends on the last one alone. The heads' bias by the previous token is
    then all that the model knows, and their layers add nothing.
    """
    for name, parameter in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            parameter.data.zero_()
    backbone = build_backbone(model)
    size = backbone.hidden_size
    config = dflash_config(backbone, markov_rank=size, own_output=True, **changes)
    heads = DFlashHeads(config)
    generator = torch.Generator().manual_seed(0)
    for parameter in heads.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5
    embeddings = dequantized(backbone.embeddings).detach()
    normed = torch.nn.functional.rms_norm(embeddings, (size,), eps=model.config.rms_norm_eps)
    known = normed * model.get_decoder().norm.weight.data
    known = known + noise * known.std() * torch.randn(known.shape, generator=generator)
    weights = heads.weights
    assert weights.output is not None
    assert weights.markov_tokens is not None
    assert weights.markov_output is not None
    weights.output.data.zero_()
    weights.markov_tokens.data = _CONFIDENT * known
    weights.markov_output.data = model.get_output_embeddings().weight.data.clone()
    return backbone, heads.attach(backbone)


@torch.no_grad()
def knowing_dspark() -> tuple[Backbone, DFlashHeads]:
    """Heads that are right after even tokens and find the true token unlikely after odd ones, and estimate that."""
    backbone, heads = sure_dspark(
        tiny_model("llama", vocab_size=KNOWING_VOCAB), has_confidence=True, confidence_reads_token=True
    )
    weights = heads.weights
    assert weights.markov_tokens is not None
    assert weights.confidence is not None
    assert weights.confidence_bias is not None
    signs = 1.0 - 2.0 * (torch.arange(KNOWING_VOCAB) % 2)
    weights.markov_tokens.mul_(signs[:, None])
    # There are fewer tokens than entries of a token's vector, so that a product with it can have any values.
    weights.confidence.zero_()
    weights.confidence[0, backbone.hidden_size :] = torch.linalg.lstsq(
        weights.markov_tokens, KNOWN_ODDS * signs
    ).solution
    weights.confidence_bias.zero_()
    return backbone, heads
