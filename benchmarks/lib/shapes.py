"""Models of a given shape with random weights, created on their device, with heads of about published sizes.

The cost of a step does not depend on the weights' values. So a machine without a model hub can measure a 7B model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from entmtp.errors import EntMTPError
from entmtp.heads.base import DraftHeads
from entmtp.heads.checkpoint import KINDS
from entmtp.heads.trained import TrainedHeads
from entmtp.models.backbone import Backbone

NUM_HEADS = 4
_SEED = 0


@dataclass(frozen=True)
class Shape:
    """Sizes of a Llama and of its heads.

    Attributes:
        context: positions; a published model may have fewer than a measurement needs.
        inner: width of the hidden layer of each head, by kind.
    """

    layers: int
    hidden: int
    heads: int
    intermediate: int
    vocab: int
    context: int
    inner: dict[str, int]


SHAPES: dict[str, Shape] = {
    # Published for Vicuna-7B: Medusa heads of one hidden x hidden layer each (as many weights as two of half that
    # width), Hydra heads of 2 to 5 such layers; both end here in the model's own output layer on all 32,000 tokens.
    "vicuna-7b": Shape(32, 4096, 32, 11_008, 32_000, 8192, {"medusa": 2048, "hydra": 4096}),
    "small": Shape(12, 512, 8, 1376, 8192, 4096, {"medusa": 256, "hydra": 512}),
    "tiny": Shape(2, 64, 4, 172, 512, 2048, {"medusa": 32, "hydra": 64}),
}


def shape_of(name: str) -> Shape:
    """The shape called ``name``.

    Raises:
        EntMTPError: if there is none.
    """
    if name not in SHAPES:
        raise EntMTPError(f"shape: '{name}' is unknown; choose one of {', '.join(SHAPES)}")
    return SHAPES[name]


def random_model(shape: Shape, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """A Llama of this shape. Its weights and rotary tables are created on ``device``, not copied there."""
    config = LlamaConfig(
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        vocab_size=shape.vocab,
        max_position_embeddings=shape.context,
        tie_word_embeddings=False,
    )
    torch.manual_seed(_SEED)
    with device:
        model = cast(Any, AutoModelForCausalLM).from_config(config, dtype=dtype)
    return cast(PreTrainedModel, model.eval().requires_grad_(False))


def random_heads(shape: Shape, kind: str, backbone: Backbone) -> DraftHeads:
    """Attached heads of this kind that draft from the whole vocabulary.

    Raises:
        EntMTPError: if the kind is unknown.
    """
    if kind not in shape.inner:
        raise EntMTPError(f"heads: kind '{kind}' is unknown; with --shape choose one of {', '.join(shape.inner)}")
    heads_class = KINDS[kind]
    assert issubclass(heads_class, TrainedHeads)
    config = heads_class.config_class(
        hidden_size=shape.hidden,
        vocab_size=shape.vocab,
        num_heads=NUM_HEADS,
        inner_size=shape.inner[kind],
        draft_vocab_size=shape.vocab,
    )
    torch.manual_seed(_SEED)
    with backbone.device, torch.no_grad():
        heads = heads_class(config)
        for weight in heads.parameters():
            if weight.ndim > 1:  # the scales stay as they are
                torch.nn.init.normal_(weight, std=weight.shape[-1] ** -0.5)
    return heads.attach(backbone)
