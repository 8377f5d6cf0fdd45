"""Request ids, the same in headers, logs and calls."""

from __future__ import annotations

import re
import uuid

from starlette.datastructures import MutableHeaders
from starlette.types import Scope

ID_HEADER = "x-request-id"
_VALID = re.compile(r"[A-Za-z0-9._-]{1,128}")


def request_id(scope: Scope) -> str:
    """Id of a request: its header's, if that is a valid id, or else a new one, which is added to the headers."""
    headers = MutableHeaders(scope=scope)
    given = headers.get(ID_HEADER, "")
    if not _VALID.fullmatch(given):
        given = headers[ID_HEADER] = uuid.uuid4().hex
    return given
