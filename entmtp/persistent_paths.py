"""The cache folder, and a check of output paths: results must outlive the Ray job that writes them."""

from __future__ import annotations

import itertools
import os
import re
from pathlib import Path

from entmtp.errors import EntMTPError

_UPLOADS = ("runtime_resources", "working_dir_files")
"""Consecutive folders of the path where Ray unpacks a submitted job's working directory."""
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]+):/")
"""Start of a URI that was made a path, which merges the two slashes into one."""


def cache_folder() -> Path:
    """Folder of everything that EntMTP can make again: `$ENTMTP_CACHE`, else the user's cache folder (XDG)."""
    if chosen := os.environ.get("ENTMTP_CACHE"):
        return Path(chosen).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "entmtp"


def check_persistent_path(option: str, path: Path, instead: str = "an absolute path") -> None:
    """Refuse a URI, and a path inside the temporary copy of the checkout from which a submitted Ray job runs.

    Args:
        option: the option with the path, for the error.
        instead: what to give instead, for the error.

    Raises:
        EntMTPError: Ray would delete the path some time after the job, or the URI would become a folder with the name
            of its scheme.
    """
    if (scheme := _SCHEME.match(path.as_posix())) is not None:
        raise EntMTPError(f"{option}: a URI ({scheme[1]}://…) is not accepted here, only a folder; give {instead}")
    parts = path.expanduser().absolute().parts
    if _UPLOADS in itertools.pairwise(parts):
        raise EntMTPError(
            f"{option}: '{path}' would lie in the temporary copy of the checkout that this job runs from, and be lost"
            f" with it; give {instead}"
        )
