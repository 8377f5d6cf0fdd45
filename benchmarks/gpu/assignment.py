"""Sizes, device and time of a part, and its record, which is written anew after every cell."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch

from benchmarks.lib.record import Record, Table, make_record, write_record
from entmtp.errors import EntMTPError
from entmtp.policies.step_cost import hardware_name

NAME = "gpu"
"""The benchmark's name in records."""
DTYPE = torch.bfloat16
DRY = "A dry run on a CPU: its numbers say nothing about any machine."
T = TypeVar("T")


@dataclass(frozen=True)
class Assignment:
    """One part's sizes, device and time.

    Attributes:
        shape: name of the sizes of random weights (:mod:`benchmarks.lib.shapes`).
        output: folder of the records.
        deadline: of :func:`time.monotonic`.
        dry: whether everything runs once on a CPU.
    """

    shape: str
    output: Path
    deadline: float
    dry: bool

    @property
    def device(self) -> torch.device:
        """The GPU; a CPU in a dry run."""
        return torch.device("cpu" if self.dry else "cuda")

    @property
    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()

    def pick(self, full: T, dry: T) -> T:
        """``full``, or what takes its role in a dry run."""
        return dry if self.dry else full


@dataclass
class Sheet:
    """A part's record while it is being filled, cell by cell.

    Attributes:
        part: name of its file.
        notes: the record's sentences that hold from the start.
    """

    assignment: Assignment
    part: str
    title: str
    notes: list[str]
    tables: list[Table] = field(default_factory=list)

    def fill(self, cells: Mapping[str, Callable[[], None]]) -> None:
        """Run cells in order, while the longest of them would still fit the time left, and write after each.

        Raises:
            EntMTPError: at the end, if a cell failed; the others were measured. At once, if no time is left.
        """
        failed, longest = [], 0.0
        for number, (name, measure) in enumerate(cells.items(), 1):
            if self.assignment.left < longest:
                if number == 1:
                    raise EntMTPError(f"{self.part}: loading took all its time; give a larger --limit, or it as --part")
                print(f"{number - 1} of {len(cells)} cells fit the time")
                self.notes.append(f"Not measured, since the time was up: {'; '.join(list(cells)[number - 1 :])}.")
                break
            began = time.monotonic()
            try:
                measure()
                print(f"cell {number} of {len(cells)}, {name}: {time.monotonic() - began:.1f} s")
            except Exception as error:  # of any type, such as too little memory for this cell alone
                failed.append(f"{name}: {type(error).__name__}: {_first_line(error)}")
                print(f"cell {number} of {len(cells)}, {failed[-1]}")
                self.notes.append(f"Failed: {failed[-1]}.")
            longest = max(longest, time.monotonic() - began)
            release_memory()
            self.write()
        self.write()
        if failed:
            raise EntMTPError(f"{self.part}: {len(failed)} of {len(cells)} cells failed: {'; '.join(failed)}")

    def write(self) -> None:
        """Write the record as it is; without a table there is none yet."""
        if self.tables:
            write_record(self.assignment.output / f"gpu-{self.part}.json", self.record())

    def record(self) -> Record:
        """The record of what was measured so far; it needs a table."""
        notes = [*[DRY] * self.assignment.dry, *self.notes]
        return make_record(NAME, self.title, hardware_name(self.assignment.device), self.tables, notes)


def print_table(table: Table) -> None:
    """Print a table in lines that are short enough for any log."""
    print(table.title)
    cells = [table.columns, *([str(cell) for cell in row] for row in table.rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(table.columns))]
    for row in cells:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths)))


def release_memory() -> None:
    """Give the memory of the last cell back."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "no message")
