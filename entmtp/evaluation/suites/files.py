"""Rows of a data file that a user gives: JSON lines, a JSON list or Parquet. Files are untrusted: bounded, checked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from entmtp.errors import EntMTPError

MAX_FILE_BYTES = 2 * 1024**3
MAX_LINE_CHARACTERS = 16 * 1024**2
PARQUET_BATCH_ROWS = 256

Located = tuple[str, Any]
"""A row, not validated yet, after the words that say where it is."""


def read_rows(path: Path, columns: frozenset[str]) -> Iterator[Located]:
    """Yield the file's rows with their places ('FILE, line 3'), holding one row or one batch in memory where possible.

    `columns` are the ones worth reading; only Parquet can leave the others out.

    Raises:
        EntMTPError: the file is missing, too big, empty, of an unknown kind, not UTF-8, or broken or too long at a
            named line.
    """
    _check_file(path)
    kind = path.suffix.lower()
    try:
        if kind == ".parquet":
            yield from _parquet_rows(path, columns)
        elif kind == ".json" and _first_character(path) == "[":
            yield from _list_rows(path)
        else:
            yield from _line_rows(path)
    except UnicodeDecodeError as error:
        raise EntMTPError(f"{path}: not UTF-8 text at byte {error.start}; save the file as UTF-8") from error
    except OSError as error:
        raise EntMTPError(f"{path}: cannot be read ({error.strerror or error}); check its permissions") from error


def _check_file(path: Path) -> None:
    if not path.is_file():
        reason = "is not a regular file" if path.exists() else "does not exist"
        raise EntMTPError(f"data file {path} {reason}; give the path of a .jsonl, .json or .parquet file")
    if path.suffix.lower() not in (".jsonl", ".json", ".parquet"):
        raise EntMTPError(f"data file {path} has the unknown ending {path.suffix!r}; use .jsonl, .json or .parquet")
    size = path.stat().st_size
    if size == 0:
        raise EntMTPError(f"data file {path} is empty; it needs at least one row")
    if size > MAX_FILE_BYTES:
        raise EntMTPError(_too_big(path, size))


def _too_big(path: Path, size: int) -> str:
    limit = MAX_FILE_BYTES // 1024**3
    return (
        f"data file {path} holds {size / 1024**3:.1f} GiB, more than the {limit} GiB allowed; give a smaller part of it"
    )


def _first_character(path: Path) -> str:
    with path.open(encoding="utf-8-sig") as file:
        for line in file:
            if line.strip():
                return line.strip()[0]
    return ""


def _line_rows(path: Path) -> Iterator[Located]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(iter(lambda: file.readline(MAX_LINE_CHARACTERS + 1), ""), start=1):
            where = f"{path}, line {number}"
            if len(line) > MAX_LINE_CHARACTERS:
                raise EntMTPError(f"{where}: is longer than {MAX_LINE_CHARACTERS} characters; put one row on each line")
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise EntMTPError(f"{where}: broken JSON ({error}); put one JSON object on each line") from error
            yield where, row


def _list_rows(path: Path) -> Iterator[Located]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise EntMTPError(f"{path}, line {error.lineno}: broken JSON ({error.msg}); give a list of objects") from error
    except UnicodeDecodeError:
        raise
    except (ValueError, RecursionError) as error:
        raise EntMTPError(f"{path}: broken JSON ({error}); give a list of objects") from error
    for number, row in enumerate(rows, start=1):
        yield f"{path}, item {number}", row


def _parquet_rows(path: Path, columns: frozenset[str]) -> Iterator[Located]:
    try:
        with pq.ParquetFile(path) as file:
            groups = (file.metadata.row_group(index) for index in range(file.metadata.num_row_groups))
            unpacked = sum(group.total_byte_size for group in groups)
            if unpacked > MAX_FILE_BYTES:
                raise EntMTPError(_too_big(path, unpacked))
            present = [name for name in file.schema_arrow.names if name in columns]
            number = 0
            for batch in file.iter_batches(batch_size=PARQUET_BATCH_ROWS, columns=present):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}, row {number}", row
    except pa.ArrowException as error:
        reason = str(error).splitlines()[0]
        raise EntMTPError(f"{path}: broken Parquet ({reason}); write the file again") from error
