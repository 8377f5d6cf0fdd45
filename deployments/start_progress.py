"""Progress of engines while they start, reported to the process that starts them.

They append lines to a file, where an environment variable names one: where the service's log is and how its lines look
depends on the configuration.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

VARIABLE = "ENTMTP_PROGRESS_FILE"
_log = logging.getLogger("ray.serve")


def tell(engine: str, text: str) -> None:
    """Says what an engine does now."""
    line = f"{engine}: {text}"
    _log.info(line)
    flush_log()
    if path := os.environ.get(VARIABLE):
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")


def flush_log() -> None:
    """Writes out the lines of the service's log that Ray Serve still holds back."""
    for handler in _log.handlers:
        handler.flush()


class Lines:
    """Follows a file that others append lines to."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = 0

    def new(self) -> list[str]:
        """Whole lines that have come since the last call."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._read)
            text, end, _ = file.read().rpartition(b"\n")
        self._read += len(text + end)
        return text.decode("utf-8", "replace").splitlines()
