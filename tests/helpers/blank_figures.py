"""Reports without drawing, which takes most of their time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

PNG = b"\x89PNG\r\n\x1a\n"
"""Signature that a PNG begins with."""


@contextmanager
def blank_figures() -> Iterator[None]:
    """Write each figure as a file that holds a PNG's signature alone; its axes, title and caption are made as ever."""

    def write(figure: Figure, path: Path, **options: Any) -> None:
        path.write_bytes(PNG)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", write)
        yield
