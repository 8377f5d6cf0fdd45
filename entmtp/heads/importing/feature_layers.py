"""Layers of the model whose states published heads read, counted by the layer that a state enters."""

from __future__ import annotations

from collections.abc import Sequence

from entmtp.errors import EntMTPError, quoted
from entmtp.heads.importing.decoder_fields import invalid
from entmtp.heads.importing.layout import HeadsImport
from entmtp.heads.importing.source import Source


def entered_layers(source: Source, name: str, ids: object, offset: int, model_layers: int | None) -> list[int]:
    """The layers that the states of field ``name`` enter: its ``ids`` plus ``offset``.

    ``offset`` is 1 where the configuration counts by the layer that a state leaves.

    Raises:
        EntMTPError: if they are no ascending layer numbers of a model with ``model_layers``, if that is known.
    """
    if not isinstance(ids, list) or not ids or not all(type(each) is int and each + offset >= 0 for each in ids):
        raise invalid(source, name, f"is {quoted(ids)}, not a list of layer numbers")
    layers = [each + offset for each in ids]
    if sorted({*layers}) != layers or (model_layers or layers[-1] + 1) <= layers[-1]:
        within = "" if model_layers is None else f" of a model with {model_layers}"
        raise invalid(source, name, f"is {quoted(ids)}, not layer numbers in ascending order{within}")
    return layers


def model_layer_count(checkpoint: HeadsImport, configured: int | None) -> int | None:
    """Number of the model's layers: the model's own, else ``num_target_layers`` as ``configured``.

    Raises:
        EntMTPError: if the two differ.
    """
    if checkpoint.model is None:
        return configured
    in_model: int = checkpoint.model.num_hidden_layers
    if configured not in (None, in_model):
        raise invalid(checkpoint.source, "num_target_layers", f"is {configured} but the model's layers are {in_model}")
    return in_model


def check_within_model(source: Source, layers: Sequence[int], count: int) -> None:
    """Raises EntMTPError if the model's ``count`` layers are fewer than the heads read."""
    if layers[-1] >= count:
        raise EntMTPError(
            f"heads: {source.config_path}: the heads read the input of layer {layers[-1]} but the model's"
            f" layers are 0 to {count - 1}; give --model with the model that they are for"
        )
