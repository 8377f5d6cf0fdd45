"""Records and tables as Markdown, as the generated pages of `docs` show them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from benchmarks.record import Record
from entmtp.evaluation.flat_tables import markdown_table


def record_section(record: Record, folder: str) -> Iterable[str]:
    """A section with the record's command, machine, tables, figures and notes, line by line.

    ``folder`` is where its figures lie, seen from the page.
    """
    versions = ", ".join(f"{name} {number}" for name, number in sorted(record.versions.items()))
    commit = f", commit {record.commit}" if record.commit else ""
    yield from (f"### {record.title}", "", "```", record.command, "```", "")
    yield from (f"{record.machine}. {record.date}{commit}, {versions}.", "")
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
