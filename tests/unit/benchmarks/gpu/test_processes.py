"""Isolation of parts: one that dies, hangs, floods or prints nothing ends in one line, and takes nothing along."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from benchmarks.gpu import processes
from benchmarks.gpu.processes import Ending, run_process

FOREVER = """
import pathlib, signal, sys, time
print("begun", flush=True)
pathlib.Path({file!r}).touch()
while True:
    time.sleep(0.05)
"""
DEAF = FOREVER.replace("print(", "signal.signal(signal.SIGINT, signal.SIG_IGN)\nprint(")
WRITING = """
import pathlib, time
file = pathlib.Path({file!r})
try:
    file.touch()
    while True:
        time.sleep(0.05)
except KeyboardInterrupt:
    file.write_text("whole")
"""
ENDINGS = {
    "done": ("print('first'); print('last')", "done in", "last", False),
    "raises": ("print('begun'); raise ValueError('no memory')", "FAILED after", "ValueError: no memory", True),
    "exits": ("import sys; sys.exit('too little memory')", "by exit code 1: too little memory", "too little", True),
    "crashes": ("import os; print('begun', flush=True); os.abort()", "by signal SIGABRT", "begun", True),
    "is killed": ("import os; os.kill(os.getpid(), 9)", "by signal SIGKILL: it printed nothing", "", True),
    "says nothing": ("import sys; sys.exit(3)", "by exit code 3: it printed nothing", "", True),
    "prints no text": ("import sys; sys.stdout.buffer.write(b'\\xff\\xfe\\n')", "done in", "\ufffd\ufffd", False),
    "ends in half a line": ("print('half', end='')", "done in", "half", False),
}


def run(code: str, seconds: float = 600.0) -> tuple[Ending, list[str]]:
    lines: list[str] = []
    return run_process([sys.executable, "-c", code], seconds, lines.append), lines


@pytest.mark.parametrize("name", list(ENDINGS))
def test_an_ending_is_one_line(name: str) -> None:
    code, words, last, failed = ENDINGS[name]
    ending, lines = run(code)
    assert words in str(ending)
    assert last in ending.detail
    assert ending.failed is failed
    assert "\n" not in str(ending)
    assert lines[-1:] == [ending.detail] * bool(lines)


def hang(code: str, file: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Ending, list[str]]:
    """Run code that never ends; its time is up as soon as it has made the file."""
    waits = iter([lambda process, seconds: _exists(file)])
    ended = processes._ended
    monkeypatch.setattr(processes, "_ended", lambda *given: next(waits, ended)(*given))
    return run(code.format(file=str(file)))


def _exists(file: Path) -> bool:
    while not file.exists():
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("code", [FOREVER, DEAF], ids=["interrupted", "killed"])
def test_what_hangs_is_ended_and_what_it_said_stays(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "GRACE_SECONDS", 1.0)
    ending, lines = hang(code, tmp_path / "file", monkeypatch)
    assert lines[0] == "begun"
    assert ending.stopped
    assert not ending.failed
    assert "stopped after" in str(ending)


def test_an_interrupted_part_may_write_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "GRACE_SECONDS", 60.0)
    hang(WRITING, tmp_path / "file", monkeypatch)
    assert (tmp_path / "file").read_text() == "whole"


def test_time_that_is_up_is_noticed() -> None:
    ending, _ = run("import time; time.sleep(600)", seconds=0.1)
    assert ending.stopped


def test_what_a_part_started_ends_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "GRACE_SECONDS", 1.0)
    file = tmp_path / "pid"
    child = f"import os, pathlib, time; pathlib.Path({str(file)!r}).write_text(str(os.getpid())); time.sleep(600)"
    code = (
        "import pathlib, subprocess, sys, time\n"
        f"subprocess.Popen([sys.executable, '-c', {child!r}])\n"
        f"while not pathlib.Path({str(file)!r}).is_file() or not pathlib.Path({str(file)!r}).read_text():\n"
        "    time.sleep(0.05)\n"
        "print('started')"
    )
    ending, lines = run(code)
    assert (ending.code, lines) == (0, ["started"])  # although the child has the same output open
    assert _is_gone(int(file.read_text()))


def _is_gone(pid: int) -> bool:
    """Whether a process has ended after a while; a zombie has."""
    status = Path(f"/proc/{pid}/stat")
    for _ in range(200):
        try:
            if status.read_text().rpartition(")")[2].split()[0] == "Z":
                return True
            os.kill(pid, 0)
        except (OSError, IndexError):
            return True
        time.sleep(0.05)
    return False
