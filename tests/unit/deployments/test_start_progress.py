"""Lines that engines tell while they start."""

from __future__ import annotations

import logging
import logging.handlers
from pathlib import Path

import pytest

from deployments.start_progress import VARIABLE, LineFollower, report_progress


def test_lines_come_once_and_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "progress"
    lines = LineFollower(path)
    assert lines.new_lines() == []
    monkeypatch.setenv(VARIABLE, str(path))
    report_progress("a", "loading")
    report_progress("b", "loading")
    with path.open("a") as file:
        file.write("a: half")
    assert lines.new_lines() == ["a: loading", "b: loading"]
    assert lines.new_lines() == []
    with path.open("a") as file:
        file.write(" and whole\n")
    assert lines.new_lines() == ["a: half and whole"]


def test_a_line_is_in_the_log_at_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    written: list[str] = []

    class Target(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            written.append(record.getMessage())

    log = logging.getLogger("ray.serve")
    buffer = logging.handlers.MemoryHandler(1000, target=Target())
    monkeypatch.setattr(log, "handlers", [buffer])
    caplog.set_level(logging.INFO, log.name)
    report_progress("a", "loading")
    assert written == ["a: loading"]
