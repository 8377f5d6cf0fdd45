"""Progress of a benchmark: a live table on a terminal, one line a minute elsewhere."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from types import TracebackType

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from entmtp.evaluation.run.units import Unit
from entmtp.evaluation.run.work_queue import SettledUnit

_SECONDS_BETWEEN_LINES = 60.0
_TABLES_PER_SECOND = 2.0

WorkerStates = Callable[[], list[tuple[str, str]]]
"""Returns the name and the current work of each worker."""


class Progress:
    """Shows settled units from a thread of its own, so that it also moves during a long unit."""

    def __init__(
        self, console: Console, units: Sequence[Unit], waiting: Sequence[Unit], worker_states: WorkerStates
    ) -> None:
        self._console = console
        self._worker_states = worker_states
        self._total = Counter(unit.suite for unit in units)
        self._done = self._total - Counter(unit.suite for unit in waiting)
        self._waiting = len(waiting)
        self._busy_seconds = 0.0
        self._set_aside: Counter[str] = Counter()
        self._began = time.monotonic()
        self._ended = threading.Event()
        self._live = Live(get_renderable=self.table, console=console, refresh_per_second=_TABLES_PER_SECOND)
        self._lines = threading.Thread(target=self._print_lines, daemon=True)

    def __enter__(self) -> Progress:
        if self._console.is_terminal:
            self._live.start()
        else:
            self._lines.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self._live.stop()
            return
        self._ended.set()
        self._lines.join()
        self._console.print(self.line(), soft_wrap=True)

    def settled(self, done: SettledUnit) -> None:
        """Count a settled unit."""
        self._done[done.unit.suite] += 1
        self._set_aside[done.unit.suite] += len(done.set_aside)
        self._busy_seconds += done.busy_seconds

    def line(self) -> str:
        """'12 of 40 units, 3 workers, 5.0 min gone, about 11.7 min left'."""
        parts = [f"{self._done.total()} of {self._total.total()} units"]
        if workers := len(self._worker_states()):
            parts.append(f"{workers} workers")
        if self._set_aside.total():
            parts.append(f"{self._set_aside.total()} prompts set aside")
        elapsed = time.monotonic() - self._began
        parts.append(f"{_minutes(elapsed)} gone")
        left = self._total.total() - self._done.total()
        if left and (here := self._waiting - left):
            # Loading the model is no part of a unit, so the first unit already predicts the others' time.
            parts.append(f"about {_minutes(self._busy_seconds / here * left / max(1, workers))} left")
        return ", ".join(parts)

    def table(self) -> RenderableType:
        """A row per suite, then a row per worker, then :meth:`line`."""
        suites = Table("suite", "units", "of", "set aside", box=box.SIMPLE_HEAD)
        for suite, total in self._total.items():
            suites.add_row(suite, str(self._done[suite]), str(total), str(self._set_aside[suite] or ""))
        workers = Table("worker", "does", box=box.SIMPLE_HEAD)
        for name, state in self._worker_states():
            workers.add_row(Text(name), Text(state))
        return Group(suites, workers, Text(self.line()))

    def _print_lines(self) -> None:
        while not self._ended.wait(_SECONDS_BETWEEN_LINES):
            self._console.print(self.line(), soft_wrap=True)


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.1f} min"
