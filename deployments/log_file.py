"""Request log: JSON lines in one folder on each node, with one file for each process that serves requests.

The ingresses write most lines. Serve's proxies write the rest, in the folder that the ingresses have published.
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

from deployments.proxy_settings import ProxySettingsReader
from entmtp.errors import EntMTPError

_log = logging.getLogger("ray.serve")

LOGGED_HEADER = b"x-request-logged"
"""Header of an ingress's response: the request is logged. The proxy removes the header."""

FOLDER = Path("~/.local/state/entmtp/requests")
LONGEST_PATH = 200
"""Maximum number of logged characters of a request's path."""

_FILE_BYTES, _FILES = 50_000_000, 10
"""Size at which a process starts a new file, and number of files of a process, the current one included."""

_FOLDER_BYTES, _FOLDER_FILES = 2_000_000_000, 500
"""Limits of a folder, applied when a process starts a file there. Files being written stay in any case."""

_PATTERNS = "ingress-*.jsonl*", "proxy-*.jsonl*"
"""Names of the log's files; other files in the folder are never deleted."""


class LogFile:
    """Writes lines in a thread of its own, so that a slow disk delays no request."""

    def __init__(self, folder: Path, name: str) -> None:
        """Open the file ``name``.jsonl in ``folder``, which is created if missing; the first line creates the file.

        Raises:
            EntMTPError: the folder can't be written.
        """
        self.path = folder.expanduser() / f"{name}.jsonl"
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            probe = self.path.with_suffix(".probe")
            probe.touch()
            probe.unlink()
        except (OSError, RuntimeError) as error:
            raise EntMTPError(f"log_folder: {folder} can't be written ({error}); give another folder") from error
        _delete_oldest(self.path.parent)
        waiting: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
        file = _LockedFile(self.path, maxBytes=_FILE_BYTES, backupCount=_FILES - 1, encoding="utf-8", delay=True)
        self._logger = logging.Logger(name, logging.INFO)
        self._logger.addHandler(QueueHandler(waiting))
        self._listener = QueueListener(waiting, file)
        self._listener.start()
        atexit.register(self.close)

    def write(self, line: Mapping[str, Any]) -> None:
        """Append a line with the current time; fields that are None are left out."""
        fields = {"time": datetime.now(UTC).isoformat(timespec="milliseconds")} | dict(line)
        self._logger.info("%s", json.dumps({name: value for name, value in fields.items() if value is not None}))

    def close(self) -> None:
        """Write the remaining lines and close the file."""
        atexit.unregister(self.close)
        self._listener.stop()
        for handler in self._listener.handlers:
            handler.close()


class _LockedFile(RotatingFileHandler):
    """A log file with a shared lock while it is being written. The system drops the lock when the process ends."""

    def _open(self) -> TextIOWrapper:
        file = super()._open()
        with suppress(OSError):  # file systems without locks
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return file


def _delete_oldest(folder: Path) -> None:
    """Delete the oldest files beyond the folder's limits; files that can't be deleted stay."""
    found = []
    for path in {path for pattern in _PATTERNS for path in folder.glob(pattern)}:
        with suppress(OSError):
            status = path.stat()
            found.append((status.st_mtime, status.st_size, path))
    total = 0
    for number, (_, size, path) in enumerate(sorted(found, reverse=True)):
        total += size
        if total > _FOLDER_BYTES or number >= _FOLDER_FILES:
            with suppress(OSError):
                _delete_unless_locked(path)


def _delete_unless_locked(path: Path) -> None:
    """Delete a file; raises OSError if another process is writing it."""
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()


class ProxyLog:
    """Log file of a proxy, in the folder of the latest published settings; without settings nothing is logged."""

    def __init__(self, settings: ProxySettingsReader) -> None:
        self._settings = settings
        self._folder: Path | None = None
        self._file: LogFile | None = None

    def write(self, line: Mapping[str, Any]) -> None:
        """Append a line. If the folder can't be written, Serve's own log gets an error and the proxy goes on."""
        settings = self._settings.latest()
        if settings is not None and settings.log_folder != self._folder:
            self._open(settings.log_folder)
        if self._file is not None:
            self._file.write(line)

    def _open(self, folder: Path) -> None:
        if self._file is not None:
            self._file.close()
        self._folder, self._file = folder, None
        try:
            self._file = LogFile(folder, f"proxy-{socket.gethostname()}-{os.getpid()}")
        except EntMTPError as error:
            _log.error("requests that this proxy refuses are not logged: %s", error)
