"""One part of a run as a process: its lines as they come, its limit, and its ending in one line."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.origin import ROOT

GRACE_SECONDS = 5.0
"""The time that a process has after the interruption, to print and write what it has."""


@dataclass(frozen=True)
class Ending:
    """The ending of a part.

    Attributes:
        code: of the process, negative where a signal ended it; None if it never ran.
        stopped: whether its time was up.
        detail: last line that it printed, or the reason why it never ran.
    """

    code: int | None
    stopped: bool
    seconds: float
    detail: str

    @classmethod
    def skipped(cls, reason: str) -> Ending:
        """The ending of a part that never ran."""
        return cls(None, False, 0.0, reason)

    @property
    def failed(self) -> bool:
        """Whether the part ended by an error; being stopped by the clock is none."""
        return not self.stopped and self.code not in (None, 0)

    def __str__(self) -> str:
        if self.code is None:
            return f"skipped: {self.detail}"
        if self.stopped:
            return f"stopped after its {self.seconds:.0f} s; what it wrote until then is there"
        if self.code == 0:
            return f"done in {self.seconds:.0f} s"
        how = f"exit code {self.code}" if self.code > 0 else f"signal {_signal_name(-self.code)}"
        return f"FAILED after {self.seconds:.0f} s by {how}: {self.detail or 'it printed nothing'}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)


def run_process(command: Sequence[str], seconds: float, say: Callable[[str], None]) -> Ending:
    """Run a command from the root of the checkout and pass on each line; end it, and all that it started, in time.

    It is interrupted after ``seconds``, and killed if it goes on for :data:`GRACE_SECONDS` then.
    """
    began = time.monotonic()
    process = _started(command)
    last = [""]

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            if text := line.rstrip():
                last[0] = text
                say(text)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        stopped = not _ended(process, seconds)
        if stopped:
            _signal(process, signal.SIGINT)
            _ended(process, GRACE_SECONDS)
    finally:
        _signal(process, signal.SIGKILL)
        # A process that waits for a broken device may outlive even this; the other parts go on all the same.
        _ended(process, GRACE_SECONDS)
        reader.join(GRACE_SECONDS)
    code = process.returncode if process.returncode is not None else -signal.SIGKILL
    return Ending(code, stopped, time.monotonic() - began, last[0])


def _started(command: Sequence[str]) -> subprocess.Popen[str]:
    # A shell has interruptions ignored by what it starts in the background, and children inherit that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env=os.environ | {"PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"},
            text=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,  # a group of its own, with compilers that it may start
        )
    finally:
        signal.signal(signal.SIGINT, before)


def _ended(process: subprocess.Popen[str], seconds: float) -> bool:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def _signal(process: subprocess.Popen[str], number: signal.Signals) -> None:
    """Send a signal to the process and to all that it started; they may have ended."""
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return
