"""``entmtp import-heads``: from a published checkpoint of draft heads to one of ours."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from entmtp.errors import EntMTPError
from entmtp.heads.base import check_sizes
from entmtp.heads.importing.hydra import HYDRA
from entmtp.heads.importing.layout import Layout, Reading
from entmtp.heads.importing.medusa import MEDUSA
from entmtp.heads.importing.source import find_source
from entmtp.heads.importing.tensors import Tensors, read_tensors, some
from entmtp.heads.importing.vllm import VLLM
from entmtp.heads.original import OriginalHeads
from entmtp.models.loading.load import load_model, model_fingerprint

LAYOUTS = (MEDUSA, VLLM, HYDRA)
"""A new layout is a file beside these and a name here."""


def import_heads(source: str, output: Path, model: str | None, say: Callable[[str], None]) -> None:
    """Writes the published heads in ``source``, a local folder or hub name, to the folder ``output``.

    With ``model``, a hub name or local folder, the heads are checked against it and bound to it; without, they will
    load beside any model of their sizes.

    Raises:
        EntMTPError: if the checkpoint is of no known layout, is damaged, or is another model's, or if ``output`` holds
            something.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise EntMTPError(f"output: {output} holds something; give a folder that is empty or does not exist")
    found = find_source(source)
    tensors = read_tensors(found.weights)
    layout = _layout_of(tensors)
    say(f"{found.weights} is of {layout.words}")
    if model is None:
        reading = Reading(found, tensors, None)
        heads = _read(layout, reading)
    else:
        # In 16 bits, which tell one model from another as well: a fingerprint is made of so many of its values.
        loaded, _ = load_model(model, dtype="bfloat16")
        sizes = loaded.config.get_text_config()
        reading = Reading(found, tensors, sizes)
        heads = _read(layout, reading)
        config: Any = heads.config
        check_sizes(config, sizes.hidden_size, sizes.vocab_size)
        config.model_fingerprint = model_fingerprint(loaded)
    for note in reading.notes:
        say(note)
    _write(heads, output)
    say(f"{output}: {_summary(heads)}")


def _layout_of(tensors: Tensors) -> Layout:
    for layout in LAYOUTS:
        if layout.recognises(tensors):
            return layout
    known = ", ".join(layout.words for layout in LAYOUTS)
    raise tensors.wrong(f"{some(tensors)} are of no known layout; known are {known}")


def _read(layout: Layout, reading: Reading) -> OriginalHeads:
    heads = layout.read(reading)
    reading.tensors.close()
    return heads


def _write(heads: OriginalHeads, output: Path) -> None:
    """Whole or not at all."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".importing-", dir=output.parent) as scratch:
        folder = Path(scratch) / "heads"
        heads.save_pretrained(folder)
        folder.replace(output)


def _summary(heads: OriginalHeads) -> str:
    config = heads.config
    output = {0: "the model's own output layer", 1: "one output layer"}.get(config.outputs, "an output layer each")
    fits = "that model" if config.model_fingerprint else "any model of these sizes"
    return (
        f"{config.num_heads} {heads.kind} heads of {config.num_layers} blocks with {output}, hidden size"
        f" {config.hidden_size}, vocabulary {config.vocab_size}, for {fits}"
    )
