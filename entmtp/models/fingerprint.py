"""The fingerprint of a model: which one it is, whatever its weights' type."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from entmtp.models.bare_model import BareModel
from entmtp.models.kernels.block_weight import BlockWeight, Weight, named_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SAMPLED_PARAMETERS = 8
SAMPLED_VALUES = 256
_STORED_FINGERPRINT = "_entmtp_fingerprint"


def model_fingerprint(model: PreTrainedModel | BareModel) -> str:
    """SHA-256 that identifies a model: a hash of its shape and of sampled values of eight of its parameters.

    The sample is rounded to bfloat16. So a model has one fingerprint whether it is loaded in float32, bfloat16 or the
    type it was saved in. It takes milliseconds at any size.
    """
    if (stored := getattr(model, _STORED_FINGERPRINT, None)) is not None:
        return str(stored)
    config = model.config if isinstance(model, BareModel) else model.config.get_text_config()
    shape = (config.model_type, config.hidden_size, config.num_hidden_layers, config.vocab_size)
    return sampled_fingerprint(shape, named_weights(model))


def store_fingerprint(model: PreTrainedModel) -> None:
    """Store the model's fingerprint, which stays whatever becomes of its weights."""
    setattr(model, _STORED_FINGERPRINT, model_fingerprint(model))


def sampled_fingerprint(shape: tuple[object, ...], parameters: Sequence[tuple[str, Weight]]) -> str:
    """Fingerprint of these ``parameters`` and this ``shape``, as in :func:`model_fingerprint`."""
    digest = hashlib.sha256(repr(shape).encode())
    last = len(parameters) - 1
    for index in sorted({i * last // (SAMPLED_PARAMETERS - 1) for i in range(SAMPLED_PARAMETERS)}):
        name, values = parameters[index]
        digest.update(f"{name}{tuple(values.shape)}".encode())
        digest.update(_sample(values))
    return digest.hexdigest()


def _sample(values: Weight) -> bytes:
    """Bytes of up to 256 evenly spaced values, rounded to bfloat16."""
    count = values.numel()
    at = torch.arange(0, count, max(1, count // SAMPLED_VALUES))[:SAMPLED_VALUES]
    if isinstance(values, BlockWeight):  # of a large table, only the rows with sampled values are dequantized
        width = values.shape[1]
        rows, of_rows = torch.unique(at // width, return_inverse=True)
        picked = values.embed(rows)[of_rows, at % width]
    else:
        picked = values.detach().reshape(-1)[at.to(values.device)]
    return bytes(picked.to("cpu", torch.bfloat16).contiguous().view(torch.int16).numpy().tobytes())
