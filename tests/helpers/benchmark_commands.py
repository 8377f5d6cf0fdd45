"""Benchmarks by the name that they are run under: ``python -m benchmarks.NAME``."""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tests.helpers.paths import ROOT


def main_of(name: str) -> Any:
    """The function that the command line calls."""
    package = f"benchmarks.{name}.__main__"
    inside = (ROOT / "benchmarks" / name).is_dir() and find_spec(package) is not None
    return importlib.import_module(package if inside else f"benchmarks.{name}").main


def source_files() -> dict[str, Path]:
    """The source of every benchmark that is a command, by name."""
    folder = ROOT / "benchmarks"
    files = {path.stem: path for path in folder.glob("*.py") if path.stem != "__init__"}
    return files | {path.parent.name: path for path in folder.glob("*/__main__.py")}
