"""Hashes of the prompts that draft heads were trained on, in a file next to the weights.

Benchmarks look up their prompts there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from entmtp.errors import EntMTPError
from entmtp.files import write_text
from entmtp.heads.hub import download
from entmtp.methods import NATIVE
from entmtp.prompt_hash import DIGITS

FILE_NAME = "training_prompts.txt"
"""One hash of :func:`entmtp.prompt_hash.prompt_hash` per line."""

MAX_PROMPTS = 10_000_000
_HASH = re.compile(f"[0-9a-f]{{{DIGITS}}}")


def write_training_prompt_hashes(folder: Path, hashes: Iterable[str]) -> None:
    """Writes the sorted hashes next to the weights in ``folder``, each once."""
    write_text(folder / FILE_NAME, "".join(f"{name}\n" for name in sorted(set(hashes))))


def read_training_prompt_hashes(source: str | Path) -> frozenset[str] | None:
    """Hashes of the prompts that heads were trained on; None if there is no list, as for imported heads.

    ``source`` is a folder or a hub name, as for :func:`entmtp.heads.checkpoint.load_heads`.

    Raises:
        EntMTPError: the list is too long, or a line of it is no hash.
    """
    if source == NATIVE:
        return None
    path = _folder(source) / FILE_NAME
    if not path.is_file():
        return None
    if path.stat().st_size > MAX_PROMPTS * (DIGITS + 2):
        raise EntMTPError(f"heads: {path} names more than {MAX_PROMPTS} prompts; give a shorter list or remove it")
    lines = path.read_text(encoding="ascii", errors="replace").split()
    if (wrong := next((line for line in lines if not _HASH.fullmatch(line)), None)) is not None:
        raise EntMTPError(
            f"heads: {path} holds {wrong[:40]!a}, which is not {DIGITS} hexadecimal digits; train the heads again"
            " or remove the file"
        )
    return frozenset(lines)


def _folder(source: str | Path) -> Path:
    """Local folder of the list; one that does not exist if the hub cannot be reached."""
    if Path(source).is_dir():
        return Path(source)
    try:
        return download(str(source), (FILE_NAME,))
    except EntMTPError:
        return Path(source)
