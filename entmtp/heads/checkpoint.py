"""Draft-head checkpoints: a folder or hub repository with ``config.json`` and ``model.safetensors``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file

from entmtp.errors import EntMTPError
from entmtp.heads.base import CONFIG, WEIGHTS, DraftHeads, check_same_model
from entmtp.heads.configuration import DraftHeadsConfig
from entmtp.heads.hub import download
from entmtp.heads.native.heads import load_native
from entmtp.heads.registry import kinds_in_folders, registered_heads, trained_heads
from entmtp.methods import NATIVE

if TYPE_CHECKING:
    from entmtp.models.backbone import Backbone

_ASSETS = Path(str(files("entmtp") / "assets"))
KINDS = trained_heads()
"""Classes of heads that can be trained, by kind."""
FOLDER_KINDS = kinds_in_folders()
"""Kinds of heads that are given as a folder or hub name: trained or imported."""
BUNDLED_KINDS = tuple(kind for kind in KINDS if (_ASSETS / kind).is_dir())
"""Kinds of heads that are shipped for the bundled model."""


def bundled_heads(kind: str) -> Path:
    """Folder of the heads that are shipped for the bundled model."""
    if kind not in BUNDLED_KINDS:
        raise EntMTPError(f"heads: kind '{kind}' is unknown; choose one of {', '.join(BUNDLED_KINDS)}")
    return _ASSETS / kind


def load_heads(source: str | Path, backbone: Backbone) -> DraftHeads:
    """Loads heads from a local folder or a hub name and attaches them to ``backbone``.

    The source 'native' loads the model's own multi-token-prediction layers.

    Raises:
        EntMTPError: if the checkpoint is absent, is not safetensors, is of an unknown kind, or is for another model; if
            the model has no such layers.
    """
    if source == NATIVE:
        return load_native(backbone)
    folder = Path(source)
    if not folder.is_dir():
        folder = download(str(source), ("*.json", "*.safetensors", "*.md", "*.txt"))
    heads_class = _class_of(folder)
    if not (folder / WEIGHTS).is_file():
        found = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
        raise EntMTPError(
            f"heads: {folder} has no {WEIGHTS} (found {found}); only EntMTP's own"
            " checkpoints are read, convert published ones with 'entmtp import-heads'"
        )
    config = _config_of(heads_class, folder)
    check_same_model(config, backbone)
    try:
        heads = _with_weights(heads_class, config, load_file(folder / WEIGHTS))
    except Exception as error:  # safetensors and torch each raise their own types for a bad file
        raise _unreadable(folder / WEIGHTS, error) from error
    # Tensors are views of the mapped file, which stays in memory as long as one of them. Others take the model's type.
    heads.draft_vocab = heads.draft_vocab.clone()
    heads.fingerprint = file_hash(folder / WEIGHTS)
    return heads.attach(backbone)


def _with_weights(kind: type[DraftHeads], config: DraftHeadsConfig, tensors: Mapping[str, torch.Tensor]) -> DraftHeads:
    """Heads with these tensors, in the tensors' types. Raises ValueError if one is missing or does not belong there."""
    with torch.device("meta"):
        heads = kind(config)
    expected = heads.state_dict()
    if wrong := sorted(expected.keys() ^ tensors.keys()):
        raise ValueError(f"tensor {wrong[0]} is missing or does not belong to {kind.kind} heads")
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            raise ValueError(
                f"tensor {name} has the shape {list(tensor.shape)} instead of {list(expected[name].shape)}"
            )
    heads.load_state_dict(tensors, assign=True)
    return heads


def _unreadable(path: Path, error: Exception) -> EntMTPError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return EntMTPError(f"heads: {path} can't be read ({reason}); save the heads again")


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fields_of(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    try:
        fields = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise _no_config(path) from error
    if not isinstance(fields, dict):
        raise _no_config(path)
    return fields


def _no_config(path: Path) -> EntMTPError:
    return EntMTPError(f"heads: {path} is missing or not JSON; give a folder written by save_pretrained")


def _config_of(kind: type[DraftHeads], folder: Path) -> DraftHeadsConfig:
    try:
        return kind.config_class.of(_fields_of(folder))
    except EntMTPError as error:
        raise _unreadable(folder / CONFIG, error) from error


def _class_of(folder: Path) -> type[DraftHeads]:
    model_type = _fields_of(folder).get("model_type")
    loadable = registered_heads()
    if not isinstance(model_type, str) or model_type not in loadable:
        known = ", ".join(sorted(loadable))
        raise EntMTPError(
            f"heads: model_type '{model_type}' in {folder / CONFIG} is unknown; it must be one of {known}:"
            " convert published heads with 'entmtp import-heads'"
        )
    return loadable[model_type]
