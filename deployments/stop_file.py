"""Stop file: while it exists, Serve's proxies refuse new requests for text.

An environment variable names the file. Serve itself cannot refuse new requests while the engines finish running ones.
"""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "ENTMTP_STOP_FILE"


def stopping() -> bool:
    """Whether the stop file exists."""
    path = os.environ.get(VARIABLE)
    return bool(path) and Path(str(path)).exists()
