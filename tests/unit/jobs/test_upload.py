"""Files that travel with a Ray job."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT


def left_out(folder: Path, patterns: Path) -> list[str]:
    """Committed files of a checkout that a file of ignore patterns leaves out."""
    command = ["git", "ls-files", "--cached", "--ignored", f"--exclude-from={patterns}"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.splitlines()


@pytest.mark.parametrize("name", [".rayignore", ".gitignore"])
def test_every_committed_file_is_uploaded(name: str) -> None:
    assert left_out(ROOT, ROOT / name) == []


def test_a_pattern_that_matches_a_package_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "ignore").write_text("results\n")
    assert "entmtp/evaluation/results/rows.py" in left_out(ROOT, tmp_path / "ignore")
