"""Messages of the importer, of good and bad checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest

from entmtp.errors import EntMTPError
from entmtp.heads.importing.import_heads import import_heads


def imported(folder: Path, output: Path, model: Path | None = None) -> list[str]:
    """Imports a checkpoint; returns the importer's messages."""
    messages: list[str] = []
    import_heads(str(folder), output, None if model is None else str(model), messages.append)
    return messages


def refused(folder: Path, named: str, model: Path | None = None) -> None:
    """Asserts that a checkpoint is refused with one line, and that nothing is left of it."""
    with pytest.raises(EntMTPError) as raised:
        imported(folder, folder.parent / "ours", model)
    assert named in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not (folder.parent / "ours").exists()
    assert not list(folder.parent.glob(".importing-*"))
