"""Settings of the service that Serve's proxies need, which are configured by no file of ours: they ask the cluster."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import NamedTuple

_log = logging.getLogger("ray.serve")

_SETTLED_SECONDS, _UNSETTLED_SECONDS = 60.0, 1.0
"""So often a proxy asks, when it knows something and when it does not yet."""

_KEY = b"entmtp:announcement"


class Announcement(NamedTuple):
    """Settings that an ingress announces.

    Attributes:
        log_folder: where the request log is.
        origins: whose pages may read answers in a browser.
    """

    log_folder: Path
    origins: tuple[str, ...] = ()


def announce(made: Announcement) -> None:
    """Says it to the cluster's proxies."""
    from ray.experimental.internal_kv import _internal_kv_put

    text = json.dumps({"log_folder": str(made.log_folder), "origins": made.origins})
    _internal_kv_put(_KEY, text.encode(), overwrite=True)


def announced() -> Announcement | None:
    """The last one of all ingresses."""
    from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_initialized

    known = _internal_kv_get(_KEY) if _internal_kv_initialized() else None
    if not known:
        return None
    told = json.loads(known)
    return Announcement(Path(told["log_folder"]), tuple(told["origins"]))


class Announced:
    """Knows the last announcement, and asks for it seldom; a new configuration may have made another one."""

    def __init__(self) -> None:
        self._known: Announcement | None = None
        self._next_look = 0.0

    def latest(self) -> Announcement | None:
        """The last one that could be heard; None before the first."""
        if time.monotonic() >= self._next_look:
            try:
                self._known = announced()
            except Exception as error:  # whatever the cluster's trouble is, requests must not suffer from it
                _log.warning("what the ingresses announce can't be heard (%s)", type(error).__name__)
            self._next_look = time.monotonic() + (_SETTLED_SECONDS if self._known else _UNSETTLED_SECONDS)
        return self._known
