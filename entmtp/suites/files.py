"""Reading of a user's data file: JSON lines, a JSON list or Parquet.

Files are untrusted, so their size is bounded and their content checked.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from pathlib import Path

from entmtp.errors import EntMTPError
from entmtp.json_lines import MAX_LINE_BYTES, Located, check_file, check_size, read_json_lines, read_text, unreadable

PARQUET_BATCH_ROWS = 256
_FIELD = "data file"


def read_rows(path: Path, columns: frozenset[str]) -> Iterator[Located]:
    """Yield the file's rows with their locations ('FILE, line 3'), by rows or batches if possible.

    `columns` are the columns to read; only Parquet can skip the others.

    Raises:
        EntMTPError: the file is missing, too big, empty, of an unknown kind, not UTF-8, or broken or too long at a
            named line.
    """
    check_file(path, _FIELD, "a .jsonl, .json or .parquet file")
    _check_ending(path)
    kind = path.suffix.lower()
    try:
        if kind == ".parquet":
            yield from _parquet_rows(path, columns)
        elif kind == ".json" and _starts_a_list(path):
            yield from _list_rows(path)
        else:
            yield from read_json_lines(path)
    except OSError as error:
        raise unreadable(path, error) from error


def _check_ending(path: Path) -> None:
    if path.suffix.lower() not in (".jsonl", ".json", ".parquet"):
        raise EntMTPError(f"data file {path} has the unknown ending {path.suffix!r}; use .jsonl, .json or .parquet")


def _starts_a_list(path: Path) -> bool:
    with path.open("rb") as file:
        for line in iter(lambda: file.readline(MAX_LINE_BYTES).removeprefix(codecs.BOM_UTF8), b""):
            if line.strip():
                return line.lstrip().startswith(b"[")
    return False


def _list_rows(path: Path) -> Iterator[Located]:
    text = read_text(path)
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise EntMTPError(f"{path}, line {error.lineno}: broken JSON ({error.msg}); give a list of objects") from error
    except (ValueError, RecursionError) as error:
        raise EntMTPError(f"{path}: broken JSON ({error}); give a list of objects") from error
    for number, row in enumerate(rows, start=1):
        yield f"{path}, item {number}", row


def _parquet_rows(path: Path, columns: frozenset[str]) -> Iterator[Located]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            groups = (file.metadata.row_group(index) for index in range(file.metadata.num_row_groups))
            unpacked = sum(group.total_byte_size for group in groups)
            check_size(path, _FIELD, unpacked)
            present = [name for name in file.schema_arrow.names if name in columns]
            number = 0
            for batch in file.iter_batches(batch_size=PARQUET_BATCH_ROWS, columns=present):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}, row {number}", row
    except pa.ArrowException as error:
        reason = str(error).splitlines()[0]
        raise EntMTPError(f"{path}: broken Parquet ({reason}); write the file again") from error
