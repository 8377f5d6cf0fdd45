"""Client of Ray Serve's REST API, for starting and stopping a service."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from entmtp.errors import EntMTPError

_PATH = "/api/serve/applications/"
_FAILED = {"DEPLOY_FAILED", "UNHEALTHY"}
_GET_SECONDS = 10
_PUT_SECONDS = 180


class ServeRest:
    """Client of the dashboard of a Ray cluster."""

    def __init__(self, dashboard: str) -> None:
        self._url = dashboard + _PATH

    def deploy(self, config: Mapping[str, Any]) -> None:
        """Deploy the applications of a Serve config; others are removed.

        Raises:
            EntMTPError: Serve refuses it.
        """
        body = json.dumps(config, default=str).encode()
        request = urllib.request.Request(self._url, body, {"Content-Type": "application/json"}, method="PUT")
        try:
            with urllib.request.urlopen(request, timeout=_PUT_SECONDS):
                pass
        except urllib.error.HTTPError as error:
            raise EntMTPError(f"config: Ray Serve refuses it: {_in_one_line(error.read().decode())}") from error
        except OSError as error:
            raise EntMTPError(f"ray: Serve can't be started ({error}); see its logs") from error

    def states(self) -> dict[str, str]:
        """State of each application by name; empty while Serve knows none.

        Raises:
            EntMTPError: an application can't be started, with Serve's own reason.
        """
        applications = get_json(self._url).get("applications", {})
        for name, application in applications.items():
            if application["status"] in _FAILED:
                raise EntMTPError(f"application {name}: {_reason(application)}")
        return {name: application["status"].lower() for name, application in applications.items()}

    def nothing_runs(self) -> bool:
        """Whether Serve reports that no application is left; False if the dashboard does not answer."""
        return get_json(self._url).get("applications") == {}


def get_json(url: str) -> dict[str, Any]:
    """JSON object at ``url``; empty if there is none."""
    with suppress(OSError, ValueError), urllib.request.urlopen(url, timeout=_GET_SECONDS) as response:
        return dict(json.load(response))
    return {}


def _in_one_line(text: str) -> str:
    """Shorten Serve's error, a validation error of many lines or a traceback in JSON, to one line."""
    with suppress(ValueError, TypeError, KeyError):
        text = str(json.loads(text)["msg"]).strip().splitlines()[-1]
    lines = [line.strip() for line in text.splitlines()]
    return "; ".join(line for line in lines if line and not line.startswith("For further information"))


def _reason(application: Mapping[str, Any]) -> str:
    """Last line of Serve's messages about an application, which is the error itself."""
    messages = [application.get("message", ""), *(one["message"] for one in application["deployments"].values())]
    lines = [line.strip() for message in messages for line in message.splitlines() if line.strip()]
    user_errors = [line for line in lines if "EntMTPError" in line]
    return (user_errors or lines or ["it can't be started"])[-1]
