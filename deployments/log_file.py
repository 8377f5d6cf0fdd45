"""Files of JSON lines, one for each process that serves requests, in one folder of each node that is kept.

The ingresses write most lines, Serve's proxies the rest, where an ingress has announced that it writes.
"""

from __future__ import annotations

import atexit
import fcntl
import json
import logging
import os
import queue
import socket
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from io import TextIOWrapper
from logging.handlers import QueueHandler, QueueListener, RotatingFileHandler
from pathlib import Path
from typing import Any

from deployments.announcement import Announced
from entmtp.errors import EntMTPError

_log = logging.getLogger("ray.serve")

LOGGED_HEADER = b"x-request-logged"
"""In the responses of ingresses: the proxy need not log this request, and takes the header out."""

FOLDER = Path("~/.local/state/entmtp/requests")
LONGEST_PATH = 200
"""Characters of a request's path that are logged."""

_FILE_BYTES, _FILES = 50_000_000, 10
"""A process keeps so much: the file it writes, and the last ones that became full."""

_KEPT_BYTES, _KEPT_FILES = 2_000_000_000, 500
"""So much stays in a folder, besides what is being written, when a process begins a file there."""

_OURS = "ingress-*.jsonl*", "proxy-*.jsonl*"
"""Names of files that may go; a folder may hold others' files too."""


class LogFile:
    """Writes lines from a thread of its own, as they come: a slow disk holds up no request."""

    def __init__(self, folder: Path, name: str) -> None:
        """A file ``name``.jsonl in ``folder``, which is made if need be; the file is made with its first line.

        Raises:
            EntMTPError: nothing can be written there.
        """
        self.path = folder.expanduser() / f"{name}.jsonl"
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            probe = self.path.with_suffix(".probe")
            probe.touch()
            probe.unlink()
        except (OSError, RuntimeError) as error:
            raise EntMTPError(f"log_folder: {folder} can't be written ({error}); give another folder") from error
        _make_room(self.path.parent)
        waiting: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
        file = _HeldFile(self.path, maxBytes=_FILE_BYTES, backupCount=_FILES - 1, encoding="utf-8", delay=True)
        self._logger = logging.Logger(name, logging.INFO)
        self._logger.addHandler(QueueHandler(waiting))
        self._listener = QueueListener(waiting, file)
        self._listener.start()
        atexit.register(self.close)

    def write(self, line: Mapping[str, Any]) -> None:
        """Adds a line, with the time; what is None is left out."""
        facts = {"time": datetime.now(UTC).isoformat(timespec="milliseconds")} | dict(line)
        self._logger.info("%s", json.dumps({name: value for name, value in facts.items() if value is not None}))

    def close(self) -> None:
        """Writes what was not written yet."""
        atexit.unregister(self.close)
        self._listener.stop()
        for handler in self._listener.handlers:
            handler.close()


class _HeldFile(RotatingFileHandler):
    """Shows other processes that the file is being written; the lock goes with whoever holds it."""

    def _open(self) -> TextIOWrapper:
        file = super()._open()
        with suppress(OSError):  # a file system that has no locks
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return file


def _make_room(folder: Path) -> None:
    """Deletes the oldest files that are more than a folder keeps; what can't be deleted stays."""
    found = []
    for path in {path for pattern in _OURS for path in folder.glob(pattern)}:
        with suppress(OSError):
            facts = path.stat()
            found.append((facts.st_mtime, facts.st_size, path))
    kept = 0
    for number, (_, size, path) in enumerate(sorted(found, reverse=True)):
        kept += size
        if kept > _KEPT_BYTES or number >= _KEPT_FILES:
            with suppress(OSError):
                _delete_unless_written(path)


def _delete_unless_written(path: Path) -> None:
    """Raises OSError if another process writes it."""
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()


class ProxyLog:
    """The file of a proxy, in the folder that was announced last. Before the first announcement nothing is logged."""

    def __init__(self, announced: Announced) -> None:
        self._announced = announced
        self._folder: Path | None = None
        self._file: LogFile | None = None

    def write(self, line: Mapping[str, Any]) -> None:
        """Adds a line. A proxy whose folder can't be written serves all the same, and says so in Serve's own log."""
        known = self._announced.latest()
        if known is not None and known.log_folder != self._folder:
            self._open(known.log_folder)
        if self._file is not None:
            self._file.write(line)

    def _open(self, folder: Path) -> None:
        if self._file is not None:
            self._file.close()
        self._folder, self._file = folder, None
        try:
            self._file = LogFile(folder, f"proxy-{socket.gethostname()}-{os.getpid()}")
        except EntMTPError as error:
            _log.error("what this proxy refuses is not logged: %s", error)
