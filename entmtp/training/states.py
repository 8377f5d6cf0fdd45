"""States of a model on the texts of a corpus: what heads of a kind read of each token, and what they learn to match.

The model reads each text once. The states are stored next to the corpus in bfloat16, two bytes for each unit and token,
and mapped into memory. An interrupted run continues after its last part.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from entmtp.errors import EntMTPError
from entmtp.files import write_whole
from entmtp.models.backbone import Backbone
from entmtp.models.states import States
from entmtp.training.corpus import part_paths, read_part


@torch.inference_mode()
def write_states(
    backbone: Backbone,
    corpus: Path,
    feature_layers: Sequence[int],
    progress: Callable[[int, int], None] = lambda parts, of: None,
) -> Path:
    """Computes the states of all texts in the folder ``corpus``; returns the folder that they are in.

    Features are those of ``feature_layers`` (:class:`~entmtp.models.states.States`). Parts whose states are there
    already, of this model and these texts, are skipped.
    """
    folder = corpus.parent / ("states" + "".join(f"-{layer}" for layer in feature_layers))
    folder.mkdir(parents=True, exist_ok=True)
    paths = part_paths(corpus)
    for number, path in enumerate(paths, start=1):
        target = folder / path.name
        origin = {"model": backbone.fingerprint, "corpus": hashlib.sha256(path.read_bytes()).hexdigest()}
        if _origin(target) != origin:
            _write_part(target, [backbone.read(text.tokens, feature_layers) for text in read_part(path)], origin)
        progress(number, len(paths))
    return folder


def _write_part(path: Path, texts: Sequence[States], origin: dict[str, str]) -> None:
    joined = States.joined(texts)
    tensors = {"hidden": joined.hidden.to("cpu", torch.bfloat16)}
    if joined.features is not joined.hidden:
        tensors["features"] = joined.features.to("cpu", torch.bfloat16)
    write_whole(path, lambda unfinished: save_file(tensors, unfinished, metadata=origin))


def _origin(path: Path) -> dict[str, str] | None:
    """Model and texts of a part's states; None if there is no such part, or it is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            origin: dict[str, str] = file.metadata()
            return origin
    except Exception:  # safetensors raises its own type, and the file may be absent
        return None


def read_states(path: Path) -> States:
    """Maps the states of a part's tokens, text after text, into memory.

    Raises:
        EntMTPError: if the file can't be read.
    """
    try:
        tensors = load_file(path)
        hidden = tensors["hidden"]
        return States(hidden, tensors.get("features", hidden))
    except Exception as error:  # as above
        raise EntMTPError(f"states: {path} can't be read ({error}); remove it, and it is computed again") from error
