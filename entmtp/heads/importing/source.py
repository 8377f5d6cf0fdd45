"""Files of a published checkpoint: its weights and its ``config.json``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from entmtp.errors import EntMTPError, validation_message
from entmtp.heads.hub import download

WEIGHTS = (
    "medusa_lm_head.safetensors",
    "medusa_lm_head.pt",
    "hydra_lm_head.safetensors",
    "hydra_lm_head.pt",
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""File names of published weights; if a folder has several, the first is taken. An index names the parts of large ones.
"""
_PARTS = "model-*-of-*.safetensors", "pytorch_model-*-of-*.bin"
CONFIG = "config.json"
MAX_CONFIG_BYTES = 2**20


class ConfigFields(BaseModel):
    """Base of the fields that a layout reads from ``config.json``; other fields are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)


Fields = TypeVar("Fields", bound=ConfigFields)


@dataclass(frozen=True)
class Source:
    """Files of a checkpoint; ``config`` is the JSON object in ``config_path``."""

    weights: Path
    config_path: Path
    config: dict[str, Any]

    def fields(self, kind: type[Fields]) -> Fields:
        """Validates the configuration. Raises EntMTPError that names the invalid field."""
        try:
            return kind.model_validate(self.config)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"])
            raise EntMTPError(f"heads: {self.config_path}: {validation_message(first, field)}") from error


def find_source(name: str) -> Source:
    """Finds a published checkpoint in a local folder or a hub repository.

    Raises:
        EntMTPError: if there is none, or its configuration is no JSON object.
    """
    folder = Path(name).expanduser()
    if folder.is_file():
        raise EntMTPError(f"heads: {name} is a file; give the folder that holds it and its {CONFIG}")
    if not folder.is_dir():
        folder = download(name, (CONFIG, *WEIGHTS, *_PARTS))
    weights = [folder / known for known in WEIGHTS if (folder / known).is_file()]
    if not weights:
        # A download without files makes no folder.
        names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
        found = ", ".join(names) or "nothing"
        raise EntMTPError(
            f"heads: {folder} has none of {', '.join(WEIGHTS)} (found {found}); give a published checkpoint"
        )
    return Source(weights[0], folder / CONFIG, read_json_object(folder / CONFIG))


def read_json_object(path: Path) -> dict[str, Any]:
    """Reads a JSON object of a published checkpoint.

    Raises:
        EntMTPError: if the file is missing, too long, or holds anything else.
    """
    try:
        with path.open("rb") as file:
            found = json.loads(file.read(MAX_CONFIG_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise EntMTPError(f"heads: {path} is missing or not JSON; give the published checkpoint's own") from error
    if not isinstance(found, dict):
        raise EntMTPError(f"heads: {path} is not a JSON object; give the published checkpoint's own")
    return found
