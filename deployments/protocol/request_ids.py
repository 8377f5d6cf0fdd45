"""Ids of requests, the same in headers, logs and calls."""

from __future__ import annotations

import re
import uuid

from starlette.datastructures import MutableHeaders
from starlette.types import Scope

ID_HEADER = "x-request-id"
_HARMLESS = re.compile(r"[A-Za-z0-9._-]{1,128}")


def request_id(scope: Scope) -> str:
    """The client's or Serve's, if it is a harmless one; else one that the request has from here on."""
    headers = MutableHeaders(scope=scope)
    given = headers.get(ID_HEADER, "")
    if not _HARMLESS.fullmatch(given):
        given = headers[ID_HEADER] = uuid.uuid4().hex
    return given
