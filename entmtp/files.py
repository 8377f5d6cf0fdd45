"""Files that are either whole or absent."""

from collections.abc import Callable
from pathlib import Path


def write_whole(path: Path, write: Callable[[Path], object]) -> Path:
    """Let `write` fill a temporary file beside `path`, then rename it to `path`, replacing an older one.

    The temporary name depends on `path` alone, so a run that was killed while writing leaves nothing behind once the
    same file has been written again.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        write(unfinished)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def write_text(path: Path, text: str) -> Path:
    """Write UTF-8 text, whole or not at all."""

    def write(unfinished: Path) -> None:
        unfinished.write_text(text, encoding="utf-8")

    return write_whole(path, write)
