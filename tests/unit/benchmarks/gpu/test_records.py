"""A part's record: whole after every cell, with what was not measured and what failed."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.gpu.assignment import DRY, Assignment, Sheet
from benchmarks.lib.record import Record, Table, read_record
from entmtp.errors import EntMTPError
from tests.helpers.paths import ROOT


def sheet(folder: Path, seconds: float = 60.0) -> Sheet:
    return Sheet(Assignment("tiny", folder, time.monotonic() + seconds, dry=True), "steps", "Steps", ["It is so."])


def record_of(folder: Path) -> Record:
    return read_record(folder / "gpu-steps.json")


def row(its: Sheet, name: str) -> Callable[[], None]:
    def measure() -> None:
        rows = [*(its.tables[0].rows if its.tables else []), [name]]
        its.tables = [Table(title="cells", columns=["cell"], rows=rows)]

    return measure


def test_each_cell_is_written_before_the_next_begins(tmp_path: Path) -> None:
    its = sheet(tmp_path)
    seen: list[list[list[str | int | float]]] = []

    def look() -> None:
        seen.append(record_of(tmp_path).tables[0].rows)

    its.fill({"first": row(its, "first"), "look": look, "second": row(its, "second"), "again": look})
    assert seen == [[["first"]], [["first"], ["second"]]]
    assert record_of(tmp_path).notes == [DRY, "It is so."]


def test_a_cell_that_fails_leaves_the_others_and_is_reported(tmp_path: Path) -> None:
    its = sheet(tmp_path)

    def fail() -> None:
        raise MemoryError("no room\nfor this")

    with pytest.raises(EntMTPError, match=r"steps: 1 of 3 cells failed: large: MemoryError: no room$"):
        its.fill({"small": row(its, "small"), "large": fail, "last": row(its, "last")})
    written = record_of(tmp_path)
    assert written.tables[0].rows == [["small"], ["last"]]
    assert "Failed: large: MemoryError: no room." in written.notes


def test_cells_that_would_not_fit_the_time_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    its = sheet(tmp_path)
    clock = iter(range(0, 1000, 20))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    its.assignment = Assignment("tiny", tmp_path, 150.0, dry=True)
    its.fill({name: row(its, name) for name in ("one", "two", "three", "four", "five")})
    written = record_of(tmp_path)
    assert written.tables[0].rows == [["one"], ["two"]]
    assert "Not measured, since the time was up: three; four; five." in written.notes


def test_a_part_that_loaded_for_too_long_says_so(tmp_path: Path) -> None:
    with pytest.raises(EntMTPError, match="steps: loading took all its time; give a larger --limit"):
        sheet(tmp_path, seconds=-1.0).fill({"never": lambda: pytest.fail("it ran")})


def test_without_a_cell_there_is_no_record(tmp_path: Path) -> None:
    its = sheet(tmp_path)
    its.fill({"nothing": lambda: None})
    assert list(tmp_path.iterdir()) == []


KILLED = """
import sys, time
from pathlib import Path
from benchmarks.gpu.assignment import Assignment, Sheet
from benchmarks.lib.record import Table
sheet = Sheet(Assignment("tiny", Path(sys.argv[1]), time.monotonic() + 600, True), "steps", "Steps", [])
table = Table(title="cells", columns=["cell"], rows=[])
def cell():
    table.rows.append([len(table.rows)])
    sheet.tables = [table]
sheet.fill({str(number): cell for number in range(100_000)})
"""


def test_a_record_is_whole_whenever_its_process_is_killed(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", KILLED, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for _ in range(3):
        process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert len(record_of(tmp_path).tables[0].rows) >= 2
