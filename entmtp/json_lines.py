"""Reader of JSON lines: a UTF-8 file, with or without a byte order mark, with a JSON value on each line.

A line ends at ``\\n`` (or ``\\r\\n``) and nowhere else: texts may hold U+2028, U+2029 and U+0085, which end lines for
`str.splitlines`. Users give the files, so they are checked, and their sizes are bounded.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from entmtp.errors import EntMTPError

MAX_FILE_BYTES = 2 * 1024**3
MAX_LINE_BYTES = 16 * 1024**2

Located = tuple[str, Any]
"""A value, not validated yet, after the words that say where it is: 'FILE, line 3'."""


def read_json_lines(path: Path, field: str = "") -> Iterator[Located]:
    """Yield the value of each line that is not blank, with one line in memory at a time.

    Args:
        field: as of `check_file`; without it an error begins with the file's name.

    Raises:
        EntMTPError: the file can't be read, or a named line is too long, no UTF-8 or no JSON.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES + 1), b""), start=1):
                place = f"{_named(path, field)}, line {number}"
                text = _text_of(line.removeprefix(codecs.BOM_UTF8) if number == 1 else line, place)
                if text.strip():
                    yield f"{path}, line {number}", _value_of(text, place)
    except OSError as error:
        raise unreadable(path, error, field) from error


def check_file(path: Path, field: str, kinds: str) -> None:
    """Check, before it is read, that a file is there and neither empty nor too big.

    Args:
        field: what it was given as, before its name in the error: 'data file', 'prompts:'.
        kinds: what to give instead: 'a file of JSON lines'.

    Raises:
        EntMTPError: says which of it.
    """
    if not path.is_file():
        reason = "is not a regular file" if path.exists() else "does not exist"
        raise EntMTPError(f"{field} {path} {reason}; give the path of {kinds}")
    size = path.stat().st_size
    if size == 0:
        raise EntMTPError(f"{field} {path} is empty; it needs at least one row")
    check_size(path, field, size)


def check_size(path: Path, field: str, size: int) -> None:
    """Refuse more bytes than :data:`MAX_FILE_BYTES`.

    Raises:
        EntMTPError: ``size`` is more.
    """
    if size > MAX_FILE_BYTES:
        raise EntMTPError(
            f"{field} {path} holds {size / 1024**3:.1f} GiB, more than the {MAX_FILE_BYTES // 1024**3} GiB allowed;"
            " give a smaller part of it"
        )


def read_text(path: Path, field: str = "") -> str:
    """Read a whole UTF-8 file, without its byte order mark.

    Args:
        field: as of `check_file`; without it an error begins with the file's name.

    Raises:
        EntMTPError: the file can't be read, is too big, or is no UTF-8.
    """
    try:
        check_size(path, field or "file", path.stat().st_size)
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise EntMTPError(f"{_named(path, field)}: {_not_utf8(error)}") from error
    except OSError as error:
        raise unreadable(path, error, field) from error


def unreadable(path: Path, error: OSError, field: str = "") -> EntMTPError:
    """The error to raise for a file that the system won't let us read."""
    reason = error.strerror or error
    return EntMTPError(f"{_named(path, field)}: cannot be read ({reason}); check its permissions")


def _named(path: Path, field: str) -> str:
    """The file as an error names it."""
    return f"{field} {path}" if field else str(path)


def _text_of(line: bytes, where: str) -> str:
    if len(line) > MAX_LINE_BYTES:
        raise EntMTPError(f"{where}: is longer than {MAX_LINE_BYTES} bytes; put one row on each line")
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise EntMTPError(f"{where}: {_not_utf8(error)}") from error


def _value_of(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise EntMTPError(f"{where}: broken JSON ({error}); put one JSON object on each line") from error


def _not_utf8(error: UnicodeDecodeError) -> str:
    return f"not UTF-8 text at byte {error.start}; save the file as UTF-8"
