#!/usr/bin/env python3
"""The bundled model as a folder of Hugging Face's format in float32, for servers that can't read its own file.

    python -m benchmarks.peers.float_folder

The first call writes it into the cache folder; every call prints its path.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import typer

from entmtp.cli_errors import plain_errors
from entmtp.models.kernels.block_weight import dequantize_layers
from entmtp.models.loading.bundled import bundled_model
from entmtp.models.loading.load import load_model
from entmtp.models.loading.quiet import quiet_loading


def main() -> None:
    """Print the folder's path."""
    with plain_errors("float_folder"):
        print(float_folder(bundled_model()))


def float_folder(gguf: Path) -> Path:
    """Folder next to the file, with exactly its weights as plain numbers and its tokenizer; written once, whole."""
    folder = gguf.with_name(f"{gguf.stem}-float32")
    if not folder.is_dir():
        model, tokenizer = load_model(str(gguf))
        dequantize_layers(model)
        unfinished = folder.with_name(f".{folder.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        with quiet_loading():
            model.save_pretrained(unfinished)
            tokenizer.save_pretrained(unfinished)
        unfinished.rename(folder)
    return folder


if __name__ == "__main__":
    typer.run(main)
