"""Settings of the service that Serve's proxies need.

No configuration file of the service reaches the proxies, so the ingresses publish these settings in the cluster's
key-value store, and the proxies read them there.
"""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import NamedTuple

_log = logging.getLogger("ray.serve")

_REFRESH_SECONDS, _RETRY_SECONDS = 60.0, 1.0
"""Intervals at which a proxy reads the settings: once it has some, and before."""

_KEY = b"entmtp:announcement"


class ProxySettings(NamedTuple):
    """Settings that an ingress publishes for the proxies.

    Attributes:
        log_folder: folder of the request log.
        origins: origins whose pages may read responses in a browser.
    """

    log_folder: Path
    origins: tuple[str, ...] = ()


def publish_proxy_settings(settings: ProxySettings) -> None:
    """Publish the settings for the cluster's proxies."""
    from deployments.ray_internals import put_value

    text = json.dumps({"log_folder": str(settings.log_folder), "origins": settings.origins})
    put_value(_KEY, text.encode())


def read_proxy_settings() -> ProxySettings | None:
    """Read the settings that an ingress published last; None if there are none yet."""
    from deployments.ray_internals import get_value

    value = get_value(_KEY)
    if not value:
        return None
    fields = json.loads(value)
    return ProxySettings(Path(fields["log_folder"]), tuple(fields["origins"]))


class ProxySettingsReader:
    """Reads the published settings at intervals, as a new configuration may change them."""

    def __init__(self) -> None:
        self._settings: ProxySettings | None = None
        self._next_read = 0.0

    def latest(self) -> ProxySettings | None:
        """Settings of the last successful read; None before the first."""
        if time.monotonic() >= self._next_read:
            try:
                self._settings = read_proxy_settings()
            except Exception as error:  # requests must not fail when the cluster's store does
                _log.warning("the settings of the ingresses can't be read (%s)", type(error).__name__)
            self._next_read = time.monotonic() + (_REFRESH_SECONDS if self._settings else _RETRY_SECONDS)
        return self._settings
