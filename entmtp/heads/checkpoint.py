"""Draft-head checkpoints: a folder or hub repository with ``config.json`` and ``model.safetensors``."""

from __future__ import annotations

import hashlib
import json
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from entmtp.errors import EntMTPError
from entmtp.heads.base import DraftHeads, check_same_model
from entmtp.heads.hub import download
from entmtp.heads.native.heads import load_native
from entmtp.heads.registry import registered_heads, trained_heads
from entmtp.methods import NATIVE
from entmtp.models.loading.quiet import quiet_loading

if TYPE_CHECKING:
    from entmtp.models.backbone import Backbone

_ASSETS = Path(str(files("entmtp") / "assets"))
KINDS = trained_heads()
"""Classes of heads that can be trained, by kind."""
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
    if not (folder / "model.safetensors").is_file():
        found = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
        raise EntMTPError(
            f"heads: {folder} has no model.safetensors (found {found}); only EntMTP's own"
            " checkpoints are read, convert published ones with 'entmtp import-heads'"
        )
    config: Any = heads_class.config_class.from_pretrained(folder)
    check_same_model(config, backbone)
    try:
        with quiet_loading():
            loaded: Any = heads_class.from_pretrained(
                folder, use_safetensors=True, local_files_only=True, output_loading_info=True
            )
        heads, report = loaded
        if wrong := sorted({*report["missing_keys"], *report["unexpected_keys"]}):
            raise ValueError(f"tensor {wrong[0]} is missing or does not belong to {heads_class.kind} heads")
    except Exception as error:  # safetensors, transformers and torch each raise their own types for a bad file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise EntMTPError(
            f"heads: {folder / 'model.safetensors'} can't be read ({reason}); save the heads again"
        ) from error
    heads.fingerprint = file_hash(folder / "model.safetensors")
    return heads.attach(backbone)


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _class_of(folder: Path) -> type[DraftHeads]:
    path = folder / "config.json"
    try:
        model_type = json.loads(path.read_text(encoding="utf-8-sig")).get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise EntMTPError(f"heads: {path} is missing or not JSON; give a folder written by save_pretrained") from error
    loadable = registered_heads()
    if not isinstance(model_type, str) or model_type not in loadable:
        known = ", ".join(sorted(loadable))
        raise EntMTPError(
            f"heads: model_type '{model_type}' in {path} is unknown; it must be one of {known}:"
            " convert published heads with 'entmtp import-heads'"
        )
    return loadable[model_type]
