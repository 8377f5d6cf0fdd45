"""A file that tells Serve's proxies that the service stops: they take no new requests for text.

An environment variable names it, as Serve has no way of saying so while the engines still have answers to finish.
"""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "ENTMTP_STOP_FILE"


def stopping() -> bool:
    """Whether the file is there."""
    path = os.environ.get(VARIABLE)
    return bool(path) and Path(str(path)).exists()
