"""Paths that outlive the Ray job that writes there."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

from entmtp.errors import EntMTPError

_UPLOADS = ("runtime_resources", "working_dir_files")
"""Where Ray unpacks what a job is submitted with, as two folders that follow each other in a path."""
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]+):/")
"""At the start of what was a URI before it became a path, which has no two slashes in a row."""


def check_lasting(option: str, path: Path, instead: str = "an absolute path") -> None:
    """Refuse a path inside the temporary copy of the checkout that a submitted Ray job runs from, and a URI.

    Args:
        option: what the path was given by, for the error.
        instead: what to give, for the error.

    Raises:
        EntMTPError: it lies there, so it would be deleted some time after the job; or it was a URI, so it would be a
            folder named after a scheme.
    """
    if (scheme := _SCHEME.match(path.as_posix())) is not None:
        raise EntMTPError(f"{option}: a URI ({scheme[1]}://…) is not accepted here, only a folder; give {instead}")
    parts = path.expanduser().absolute().parts
    if _UPLOADS in itertools.pairwise(parts):
        raise EntMTPError(
            f"{option}: '{path}' would lie in the temporary copy of the checkout that this job runs from, and be lost"
            f" with it; give {instead}"
        )
