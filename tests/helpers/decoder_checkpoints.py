"""Published checkpoints of heads with decoder layers, not saved yet."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import torch

from tests.helpers.published_checkpoints import CONFIG, save_tensors


@dataclass(frozen=True, kw_only=True)
class DecoderCheckpoint:
    """A checkpoint that is not saved yet.

    Attributes:
        features: layers of the model whose inputs the heads read, as the importer must understand the configuration.
        guessable: the model's tokens that the heads guess.
        prefix: of the tensors' names in the file.
        options: sizes and variants that the formula depends on.
    """

    file: str
    config: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    features: tuple[int, ...]
    guessable: torch.Tensor
    prefix: str = ""
    options: dict[str, Any] = field(default_factory=dict)

    def save(self, folder: Path) -> Path:
        """Writes both files."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG).write_text(json.dumps(self.config))
        save_tensors(folder / self.file, {self.prefix + name: tensor for name, tensor in self.tensors.items()})
        return folder

    def changed(self, **tensors: torch.Tensor) -> Self:
        """A copy with these tensors added or replaced; ``__`` in a name stands for a dot."""
        return replace(self, tensors=self.tensors | {name.replace("__", "."): each for name, each in tensors.items()})

    def without(self, name: str) -> Self:
        """A copy without a tensor."""
        return replace(self, tensors={each: tensor for each, tensor in self.tensors.items() if each != name})

    def configured(self, **fields: Any) -> Self:
        """A copy with these fields of the configuration; None removes one."""
        config = {name: value for name, value in (self.config | fields).items() if value is not None}
        return replace(self, config=config)
