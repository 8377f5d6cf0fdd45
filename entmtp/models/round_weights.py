"""Round a model's weights to GGUF's blocks at load, for CPUs, and measure what that changes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import nn

from entmtp.errors import EntMTPError
from entmtp.models.fingerprint import store_fingerprint
from entmtp.models.kernels import compiled
from entmtp.models.kernels.block_formats import GGML_QUANT_SIZES, GGMLQuantizationType
from entmtp.models.kernels.block_weight import (
    BlockEmbedding,
    BlockLinear,
    BlockWeight,
    formats_of,
    named_weights,
    weight_of,
)
from entmtp.settings import Weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_LAYERS = {"q8": GGMLQuantizationType.Q8_0, "q4": GGMLQuantizationType.Q4_1}
_TABLES = GGMLQuantizationType.Q8_0
"""Format of the embedding table and the output layer, where rounding costs most."""
_TEXT = (
    "The harbour master counted the boats twice before he rang the bell. Three had not come back, and the wind was"
    " turning. def mean(values): return sum(values) / len(values). A train leaves at 9:15 and travels 120 km in 90"
    " minutes, so its speed is 80 km/h."
)


@dataclass(frozen=True)
class Rounding:
    """Effect of rounding on the next-token distributions of a text.

    Attributes:
        divergence: mean Kullback-Leibler divergence of the rounded model's from the model's own, in nats.
        same_best: share of positions with the same likeliest token.
        tokens: length of the text.
    """

    divergence: float
    same_best: float
    tokens: int


def parse_weights(weights: str) -> Weights:
    """Return ``weights`` as a known choice; raise EntMTPError if it is unknown."""
    known: tuple[Weights, ...] = get_args(Weights)
    for name in known:
        if name == weights:
            return name
    raise EntMTPError(f"weights: '{weights}' is unknown; choose one of {', '.join(known)}")


def round_weights(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, weights: Weights, say: Callable[[str], None]
) -> None:
    """Round the model's matrices in place, and say what they take and what that changes.

    Its fingerprint stays, so that heads and banks of the model fit.

    Raises:
        EntMTPError: if the model is not in float32 on a CPU, is in blocks already, or has no matrix to round.
    """
    if weights == "own":
        return
    if model.device.type != "cpu" or model.dtype != torch.float32:
        raise EntMTPError(f"weights: '{weights}' are for a CPU and float32; leave them 'own' on {model.device}")
    if formats_of(model):
        raise EntMTPError(f"weights: the file has its own ({', '.join(formats_of(model))}); leave them 'own'")
    store_fingerprint(model)
    before = sum(weight.nbytes for _, weight in named_weights(model))
    ids = torch.tensor([tokenizer(_TEXT)["input_ids"]])
    own = _log_probabilities(model, ids)
    _round_layers(model, _LAYERS[weights])
    # One library for all formats of the model, before one is compiled for each.
    compiled.unsupported_reason(*formats_of(model))
    if not formats_of(model):
        raise EntMTPError(f"weights: no matrix has rows of whole blocks of 32; leave them 'own' instead of '{weights}'")
    found = compare(own, _log_probabilities(model, ids))
    after = sum(weight.nbytes for _, weight in named_weights(model))
    say(
        f"weights: '{weights}' take {after / 1e6:.0f} MB instead of {before / 1e6:.0f}; on a text of {found.tokens}"
        f" tokens the next token's chances differ by {found.divergence:.4f} nats (KL), and {found.same_best:.0%} of the"
        " likeliest tokens are the same"
    )


def compare(own: torch.Tensor, rounded: torch.Tensor) -> Rounding:
    """Compare log-probabilities ``[tokens, vocab_size]`` of one text under the model's own weights and rounded ones."""
    divergence = (own.exp() * (own - rounded)).sum(-1).mean().item()
    same = (own.argmax(-1) == rounded.argmax(-1)).float().mean().item()
    return Rounding(divergence, same, len(own))


@torch.inference_mode()
def _log_probabilities(model: Any, ids: torch.Tensor) -> torch.Tensor:
    chances: torch.Tensor = model(ids).logits[0].double().log_softmax(-1)
    return chances


@torch.no_grad()
def _round_layers(model: Any, layers: GGMLQuantizationType) -> None:
    embedding, output = model.get_input_embeddings(), model.get_output_embeddings()
    made: dict[Any, BlockWeight] = {}
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            # Only exact types, because a subclass may do more than multiply or look up.
            is_table = layer is embedding and type(layer) is nn.Embedding
            if not is_table and type(layer) is not nn.Linear:
                continue
            weight = weight_of(layer)
            kind = _TABLES if layer in (embedding, output) else layers
            if not isinstance(weight, torch.Tensor) or weight.shape[1] % GGML_QUANT_SIZES[kind][0]:
                continue
            if weight not in made:
                made[weight] = BlockWeight.rounded(weight, kind)
            blocks = made[weight]
            setattr(parent, name, BlockEmbedding(blocks) if is_table else BlockLinear(blocks, layer.bias))
