"""Drafting with DFlash heads on states that transformers computes."""

from __future__ import annotations

from pathlib import Path

import torch

from entmtp.heads.dflash import DFlashHeads
from entmtp.models.backbone import Backbone
from tests.helpers.dflash_checkpoints import DFlashCheckpoint
from tests.helpers.eagle3_drafting import Drafting, imported_folder


class DFlashDrafting(Drafting):
    """Slots with a drafter, whose cache has entries of all tokens but the root."""

    def entries(self, slot: int) -> list[torch.Tensor]:
        rows = slice(1, len(self.texts[slot]))
        return [buffer[slot, :, rows] for layer in self.cache.tree_layers for buffer in (layer.keys, layer.values)]


def imported_dflash(checkpoint: DFlashCheckpoint, backbone: Backbone, folder: Path) -> DFlashHeads:
    """Imports a checkpoint without naming a model, and loads it with one."""
    heads = imported_folder(checkpoint.save(folder / "published"), backbone, folder / "ours")
    assert isinstance(heads, DFlashHeads)
    return heads
