#!/usr/bin/env python3
"""The checkout that a benchmark runs from: its commit, what differs from it, and what changed after an older one.

python -m benchmarks.origin     # exit code 2 where files differ from the commit: before hours of measuring
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import typer

from entmtp.cli_errors import plain_errors
from entmtp.errors import EntMTPError
from entmtp.provenance import git_output

ROOT = Path(__file__).resolve().parent.parent
SHORT_HASH = 12
_CODE = ("entmtp", "deployments", "jobs", "benchmarks")
"""Where a file counts that git does not track yet."""

_WRITTEN = (":!docs/performance", ":!docs/performance.md", ":!docs/study", ":!docs/study.md")
"""Pathspecs without what benchmarks write: in a series of them each would find the records of those before it."""


def main() -> None:
    """Say whether a record could name the commit that it was measured at."""
    with plain_errors("record"):
        check_committed()


@cache
def commit() -> str:
    """Commit that was checked out at the first call in this process; empty without git."""
    return _git("rev-parse", f"--short={SHORT_HASH}", "HEAD") or ""


def changed_files() -> list[str]:
    """Files that differ from :func:`commit`, without what benchmarks write; none without git.

    Raises:
        EntMTPError: if git fails.
    """
    if not commit():
        return []
    tracked = _git("diff", "--name-only", commit(), "--", ".", *_WRITTEN)
    new = _git("ls-files", "--others", "--exclude-standard", "--", *_CODE)
    if tracked is None or new is None:
        raise EntMTPError(f"record: git does not tell what differs from commit {commit()}; try 'git status'")
    return [*tracked.splitlines(), *new.splitlines()]


def check_committed() -> None:
    """Raises EntMTPError if files differ from the commit that a record would name."""
    if changed := changed_files():
        few = ", ".join(changed[:3]) + ", …" * (len(changed) > 3)
        raise EntMTPError(
            f"record: {few} differ{'s' * (len(changed) == 1)} from commit {commit()}, so this could not be measured"
            " again; commit first, or give --uncommitted, and the record says so"
        )


def commits_since(commit: str, paths: Sequence[str]) -> int | None:
    """Number of commits after ``commit`` changed one of ``paths``; None if this checkout's history lacks it."""
    if _git("merge-base", "--is-ancestor", commit, "HEAD") is None:
        return None
    count = _git("rev-list", "--count", f"{commit}..HEAD", "--", *paths)
    return None if count is None else int(count)


def history_date() -> str:
    """The date of the checked-out commit, ISO 8601.

    Raises:
        EntMTPError: if its history can't be read, or only a part of it was fetched.
    """
    if _git("rev-parse", "--is-shallow-repository") != "false":
        raise EntMTPError("history: how old records are needs all commits; use a git clone (git fetch --unshallow)")
    return _git("log", "-1", "--format=%cs") or ""


def _git(*words: str) -> str | None:
    """Git's output about this checkout, not about a repository that it was unpacked into."""
    return git_output(*words, root=ROOT)


if __name__ == "__main__":
    typer.run(main)
