"""Atomic writing of files: a file is either complete or absent."""

from collections.abc import Callable
from pathlib import Path

from entmtp.errors import EntMTPError


def write_whole(path: Path, write: Callable[[Path], object]) -> Path:
    """Let `write` fill a temporary file in the folder of `path`, then rename it to `path`, replacing an older one.

    The temporary name depends on `path` alone. After a kill during the write, the next write of the same file
    therefore removes the leftover.
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
    """Write UTF-8 text atomically."""

    def write(unfinished: Path) -> None:
        unfinished.write_text(text, encoding="utf-8")

    return write_whole(path, write)


def make_folder(option: str, path: Path) -> Path:
    """Make the folder given by `option`, and its parents.

    Raises:
        EntMTPError: it can't be made, for instance because a file has its name.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EntMTPError(f"{option}: '{path}' can't be made a folder ({error.strerror}); give another") from error
    return path
