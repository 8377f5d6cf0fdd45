"""Git in a folder of a test."""

from __future__ import annotations

import subprocess
from pathlib import Path

_AUTHOR = ("-c", "user.name=tester", "-c", "user.email=tester@example.org")


def run_git(folder: Path, *words: str) -> str:
    """Run git in a folder, as an author of its own; returns its output."""
    done = subprocess.run(["git", *_AUTHOR, *words], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def commit_all(folder: Path) -> None:
    """Make a folder a repository whose one commit has all its files."""
    run_git(folder, "init", "--quiet")
    run_git(folder, "add", ".")
    run_git(folder, "commit", "--quiet", "--message", "first")
