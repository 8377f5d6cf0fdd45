"""Markdown of records and tables, for the generated pages of `docs`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from benchmarks.lib.age import age, measured_code
from benchmarks.lib.record import Record
from entmtp.evaluation.results.flat_tables import markdown_table


def record_section(record: Record, folder: str) -> Iterable[str]:
    """A section with the record's command, machine, age, tables, figures and notes, line by line.

    ``folder`` is the folder of its figures, relative to the page.
    """
    versions = ", ".join(f"{name} {number}" for name, number in sorted(record.versions.items()))
    yield from (f"### {record.title}", "", "```", record.command, "```", "")
    yield from (f"{record.machine}. {record.date}, {record.commit_description}, {versions}.", "")
    yield from (age(record.base_commit, measured_code(record.name)), "")
    for table in record.tables:
        yield from (f"**{table.title}**", "")
        yield from table_lines(table.columns, table.rows)
    for figure in record.figures:
        yield from (f"![{record.title}]({folder}/{figure})", "")
    if record.notes:
        yield from (*(f"- {note}" for note in record.notes), "")


def table_lines(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Iterable[str]:
    """A table and an empty line, line by line."""
    yield from markdown_table(columns, list(rows))
    yield ""
