"""Progress of engines while they start, reported to the process that starts them.

Engines append lines to a file that an environment variable names. The service's log is not used for this, as its
location and format depend on the configuration.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

VARIABLE = "ENTMTP_PROGRESS_FILE"
_log = logging.getLogger("ray.serve")


def report_progress(engine: str, text: str) -> None:
    """Log a line of an engine's progress, and append it to the progress file."""
    line = f"{engine}: {text}"
    _log.info(line)
    flush_log()
    if path := os.environ.get(VARIABLE):
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")


def flush_log() -> None:
    """Flush the service's log, whose lines Ray Serve buffers."""
    for handler in _log.handlers:
        handler.flush()


class LineFollower:
    """Reader of a file to which other processes append lines."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = 0

    def new_lines(self) -> list[str]:
        """Complete lines that were appended since the last call."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._read)
            text, end, _ = file.read().rpartition(b"\n")
        self._read += len(text + end)
        return text.decode("utf-8", "replace").splitlines()
