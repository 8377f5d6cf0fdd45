"""``entmtp import-heads``: converts a published checkpoint of draft heads to EntMTP's format."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from entmtp.errors import EntMTPError
from entmtp.heads.base import DraftHeads, check_sizes
from entmtp.heads.importing.dflash import DFLASH
from entmtp.heads.importing.eagle3 import EAGLE3, SPECULATORS
from entmtp.heads.importing.hydra import HYDRA
from entmtp.heads.importing.layout import HeadsImport, Layout
from entmtp.heads.importing.medusa import MEDUSA
from entmtp.heads.importing.source import find_source
from entmtp.heads.importing.tensors import Tensors, preview_names, read_tensors
from entmtp.heads.importing.vllm import VLLM
from entmtp.models.fingerprint import model_fingerprint
from entmtp.models.loading.load import load_model

LAYOUTS: tuple[Layout[Any], ...] = (MEDUSA, VLLM, HYDRA, EAGLE3, DFLASH, SPECULATORS)
"""Known layouts. To add one, write a module for it and add its name here."""


def import_heads(source: str, output: Path, model: str | None, report: Callable[[str], None]) -> None:
    """Converts the published heads in ``source``, a local folder or hub name, to the folder ``output``.

    With ``model``, a hub name or local folder, the heads are checked against it and bound to it. Without it, they load
    with any model of their sizes. ``report`` receives a line for each message to the user.

    Raises:
        EntMTPError: if the checkpoint is of no known layout, is damaged, or is another model's, or if ``output`` is not
            empty.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise EntMTPError(f"output: {output} holds something; give a folder that is empty or does not exist")
    found = find_source(source)
    tensors = read_tensors(found.weights)
    layout = _layout_of(tensors)
    report(f"{found.weights} is of {layout.description}")
    if model is None:
        checkpoint = HeadsImport(found, tensors, None)
        heads = _read(layout, checkpoint)
    else:
        # 16 bits suffice to tell models apart by their fingerprint, which samples many values.
        loaded, _ = load_model(model, dtype="bfloat16")
        sizes = loaded.config.get_text_config()
        checkpoint = HeadsImport(found, tensors, sizes)
        heads = _read(layout, checkpoint)
        check_sizes(heads.config, sizes.hidden_size, sizes.vocab_size)
        heads.config.model_fingerprint = model_fingerprint(loaded)
    for note in checkpoint.notes:
        report(note)
    _write(heads, output)
    report(f"{output}: {_summary(layout, heads)}")


def _layout_of(tensors: Tensors) -> Layout[Any]:
    for layout in LAYOUTS:
        if layout.matches(tensors):
            return layout
    known = ", ".join(layout.description for layout in LAYOUTS)
    raise tensors.error(f"{preview_names(tensors)} are of no known layout; known are {known}")


def _read(layout: Layout[Any], checkpoint: HeadsImport) -> DraftHeads:
    heads: DraftHeads = layout.read(checkpoint)
    checkpoint.tensors.check_all_taken()
    return heads


def _write(heads: DraftHeads, output: Path) -> None:
    """Saves the heads atomically: to a temporary folder that is then renamed."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".importing-", dir=output.parent) as scratch:
        folder = Path(scratch) / "heads"
        heads.save_pretrained(folder)
        folder.replace(output)


def _summary(layout: Layout[Any], heads: DraftHeads) -> str:
    config = heads.config
    fits = "that model" if config.model_fingerprint else "any model of these sizes"
    return f"{layout.summary(heads)}, hidden size {config.hidden_size}, vocabulary {config.vocab_size}, for {fits}"
