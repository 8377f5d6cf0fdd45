"""The record of a benchmark: its tables with everything that their numbers depend on, to print and to store."""

from __future__ import annotations

import datetime
import platform
import shlex
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Self

import typer
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from rich.console import Console
from rich.table import Table as Shown

from benchmarks import origin
from entmtp.cli_errors import plain_errors
from entmtp.errors import EntMTPError
from entmtp.files import write_text
from entmtp.provenance import CHANGED

WIDTH = 120
_VERSIONED = ("torch", "transformers")
Cell = str | int | float


def _checked(context: typer.Context, path: Path | None) -> Path | None:
    """Check, before anything is measured, that the record can be written, of the code that will have run."""
    if path is not None and path.is_dir():
        with plain_errors("record"):
            raise EntMTPError(f"record: '{path}' is a folder; give a file, such as record.json")
    if path is not None and not context.params["uncommitted"]:
        with plain_errors("record"):
            origin.check_committed()
    return path


RecordOption = Annotated[
    Path | None, typer.Option("--record", help="write everything there as a record", callback=_checked)
]
"""Option ``--record``; needs a parameter ``uncommitted`` of the type :data:`UncommittedOption`."""

UncommittedOption = Annotated[
    bool, typer.Option("--uncommitted", help="record although files differ from the commit", is_eager=True)
]


class Table(BaseModel):
    """Rows of cells under ``columns``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str
    columns: list[str] = Field(min_length=1)
    rows: list[list[Cell]]

    @model_validator(mode="after")
    def _rectangular(self) -> Self:
        for number, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise ValueError(f"row {number} has {len(row)} cells for {len(self.columns)} columns")
        return self


class Record(BaseModel):
    """One run of one benchmark.

    Attributes:
        command: as typed, from the root of the checkout.
        date: UTC, ISO 8601.
        machine: its :func:`entmtp.policies.step_cost.hardware_name`.
        commit: of the checkout, with ``+`` after it if files differed; empty without git.
        notes: sentences that explain the tables, bars and whether they are met included.
        figures: names of pictures in the record's folder.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1)
    title: str = Field(min_length=1)
    command: str
    date: str
    machine: str
    versions: dict[str, str]
    commit: str
    notes: list[str]
    tables: list[Table] = Field(min_length=1)
    figures: list[str] = []

    @property
    def is_committed(self) -> bool:
        """Whether the code that ran was the commit's, by git."""
        return not self.commit.endswith(CHANGED)

    @property
    def base_commit(self) -> str:
        """The commit alone; empty without git."""
        return self.commit.removesuffix(CHANGED)

    @property
    def commit_description(self) -> str:
        """Description of the code that ran, for a reader."""
        return describe_commit(self.commit)


def describe_commit(commit: str) -> str:
    """Description of the code at ``commit``, which may have the mark of changes; empty without git."""
    if not commit:
        return "code without git, so of no known commit"
    return f"commit {commit.removesuffix(CHANGED)}{' with uncommitted changes' * commit.endswith(CHANGED)}"


def make_record(
    name: str,
    title: str,
    machine: str,
    tables: Sequence[Table],
    notes: Sequence[str] = (),
    figure: Path | None = None,
) -> Record:
    """Make the record of a measurement of this process."""
    return Record(
        name=name,
        title=title,
        command=command_line(),
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        machine=machine,
        versions={"python": platform.python_version()} | {package: version(package) for package in _VERSIONED},
        commit=origin.commit() + CHANGED * bool(origin.changed_files()),
        notes=list(notes),
        tables=list(tables),
        figures=[] if figure is None else [figure.name],
    )


def show(record: Record) -> None:
    """Print the tables, then the notes."""
    console = Console(width=WIDTH)
    console.print(f"{record.title}\n{record.machine}")
    for table in record.tables:
        shown = Shown(*table.columns, title=table.title)
        for row in table.rows:
            shown.add_row(*map(str, row))
        console.print(shown)
    for note in record.notes:
        console.print(f"- {note}", markup=False)


def write_record(path: Path, record: Record) -> None:
    """Write a record, whole or not at all."""
    write_text(path, record.model_dump_json(indent=1) + "\n")


def read_record(path: Path) -> Record:
    """Read a record.

    Raises:
        EntMTPError: if the file is absent or not a record; the message names the field.
    """
    try:
        return Record.model_validate_json(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise EntMTPError(f"record: {path} can't be read ({error.strerror}); write it with --record") from error
    except (ValidationError, UnicodeDecodeError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": str(error)}
        where = ".".join(map(str, first["loc"])) or "file"
        raise EntMTPError(f"record: {path}: {where}: {first['msg']}; write it again with --record") from error


def read_records(folder: Path) -> list[Record]:
    """The records of a folder, in the order of their file names."""
    return [read_record(path) for path in sorted(folder.glob("*.json"))]


def deliver(record: Record, path: Path | None, uncommitted: bool) -> None:
    """Print a benchmark's record, and write it to the path of ``--record``.

    Raises:
        EntMTPError: if files differed from the commit in the measurement, unless ``uncommitted`` allows that.
    """
    show(record)
    if path is None:
        return
    if not (record.is_committed or uncommitted):
        origin.check_committed()
        raise EntMTPError(
            f"record: the numbers are of {record.commit_description}, so they could not be measured again; measure"
            " anew, or give --uncommitted, and the record says so"
        )
    write_record(path, record)


def command_line() -> str:
    """The command line of this process: ``python -m benchmarks.NAME ARGUMENTS``."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    script = [Path(sys.argv[0]).name] if spec is None else ["-m", spec.name.removesuffix(".__main__")]
    return shlex.join(["python", *script, *map(portable, sys.argv[1:])])


def portable(argument: str) -> str:
    """The argument; of an absolute path only the last three parts, as the rest is about one machine."""
    path = Path(argument)
    return str(Path("...", *path.parts[-3:])) if path.is_absolute() else argument


def portable_words(words: str) -> str:
    """A command line, or another text, with its absolute paths made portable."""
    return " ".join(portable(word) for word in words.split(" "))
