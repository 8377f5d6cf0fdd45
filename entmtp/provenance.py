"""Provenance of numbers: model, heads, banks, hardware, versions, git commit, command, profile and date."""

import os
import subprocess
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

COMMIT_VARIABLE = "ENTMTP_GIT_COMMIT"
"""Names the commit of an uploaded copy, which has no git history."""

_CODE = ("entmtp", "jobs")
_CHANGED = "+"


@cache
def git_commit() -> str | None:
    """Commit of the code that runs here, as `checkout_commit`; of an uploaded copy that of its origin."""
    return os.environ.get(COMMIT_VARIABLE) or checkout_commit()


def checkout_commit() -> str | None:
    """Commit of the checkout in the working folder, with `+` where its code differs from it; None without git."""
    commit = _git("rev-parse", "HEAD")
    if not commit:
        return None
    return commit + _CHANGED * bool(_git("status", "--porcelain", "--untracked-files=no", "--", *_CODE))


def _git(*words: str) -> str | None:
    try:
        done = subprocess.run(["git", *words], capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def flatten_provenance(provenance: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Flatten nested provenance into (dotted name, text) pairs."""
    for name, value in provenance.items():
        if isinstance(value, Mapping):
            yield from flatten_provenance(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", "–" if value is None else str(value)
