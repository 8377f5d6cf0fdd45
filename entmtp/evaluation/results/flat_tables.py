"""Conversion of rows to flat tables, and of tables to CSV, Parquet and Markdown."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from entmtp.files import write_whole


def flat_table(rows: Sequence[dict[str, Any]]) -> pa.Table:
    """Rows as a table. An estimate becomes three columns, the last two `_low` and `_high`."""
    return pa.Table.from_pylist([_flatten(row) for row in rows])


def _flatten(row: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, dict):  # an Estimate
            flat |= {name: value["value"], f"{name}_low": value["low"], f"{name}_high": value["high"]}
        else:
            flat[name] = value
    return flat


def write_table(stem: Path, table: pa.Table) -> None:
    """Write the table as `stem`.parquet and `stem`.csv."""
    write_whole(stem.with_suffix(".parquet"), lambda unfinished: pq.write_table(table, unfinished))
    write_whole(stem.with_suffix(".csv"), lambda unfinished: pa_csv.write_csv(table, unfinished))


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """A table of a Markdown page, line by line."""
    return [_line(columns), _line(["---"] * len(columns)), *map(_line, rows)]


def _line(cells: Sequence[object]) -> str:
    """A line of a Markdown table. Bars inside cells are escaped, as they would begin another cell."""
    return "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
