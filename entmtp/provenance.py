"""Provenance of numbers: model, heads, banks, hardware, versions, git commit, command, profile and date."""

import os
import subprocess
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

COMMIT_VARIABLE = "ENTMTP_GIT_COMMIT"
"""Names the commit of an uploaded copy, which has no git history."""

CHANGED = "+"
"""Mark after a commit from which the code that ran differed."""

_CODE = ("entmtp", "jobs")


@cache
def git_commit() -> str | None:
    """Commit of the code that runs here, as `checkout_commit`; of an uploaded copy that of its origin."""
    return os.environ.get(COMMIT_VARIABLE) or checkout_commit()


def checkout_commit() -> str | None:
    """Commit of the checkout in the working folder, with `+` where its code differs from it; None without git."""
    commit = git_output("rev-parse", "HEAD")
    if not commit:
        return None
    return commit + CHANGED * bool(git_output("status", "--porcelain", "--untracked-files=no", "--", *_CODE))


def git_output(*words: str, root: Path | None = None) -> str | None:
    """Git's output about the repository of the working folder, or about the one whose root is ``root`` and no other.

    It is None if there is no git, no repository, or it fails.
    """
    environment, where = dict(os.environ), list[str]()
    if root is not None:
        environment["GIT_CEILING_DIRECTORIES"], where = str(root.parent), ["-C", str(root)]
    try:
        done = subprocess.run(
            ["git", *where, *words], env=environment, capture_output=True, text=True, check=True, timeout=60
        )
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
