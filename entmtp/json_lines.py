"""Reader of JSON lines: a UTF-8 file, with or without a byte order mark, with a JSON value on each line.

Only ``\\n`` (or ``\\r\\n``) ends a line. Texts may contain U+2028, U+2029 and U+0085, at which `str.splitlines` would
split. The files come from users, so they are validated and their sizes are bounded.
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
"""A location, such as 'FILE, line 3', and the value there, not validated yet."""


def read_json_lines(path: Path, field: str = "") -> Iterator[Located]:
    """Yield the value of each line that is not blank; one line is in memory at a time.

    Args:
        field: as in `check_file`; without it an error begins with the file's name.

    Raises:
        EntMTPError: the file can't be read, or a line is too long, not UTF-8 or not JSON.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES + 1), b""), start=1):
                where = f"{_named(path, field)}, line {number}"
                text = _text_of(line.removeprefix(codecs.BOM_UTF8) if number == 1 else line, where)
                if text.strip():
                    yield f"{path}, line {number}", _value_of(text, where)
    except OSError as error:
        raise unreadable(path, error, field) from error


def check_file(path: Path, field: str, kinds: str) -> None:
    """Check, before it is read, that a file exists and is neither empty nor too big.

    Args:
        field: the field's name in the error, before the path: 'data file', 'prompts:'.
        kinds: what to give instead: 'a file of JSON lines'.

    Raises:
        EntMTPError: the file is missing, not regular, empty or too big.
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
        field: as in `check_file`; without it an error begins with the file's name.

    Raises:
        EntMTPError: the file can't be read, is too big, or is not UTF-8.
    """
    try:
        check_size(path, field or "file", path.stat().st_size)
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise EntMTPError(f"{_named(path, field)}: {_not_utf8(error)}") from error
    except OSError as error:
        raise unreadable(path, error, field) from error


def unreadable(path: Path, error: OSError, field: str = "") -> EntMTPError:
    """Error for a file that the system refuses to read."""
    reason = error.strerror or error
    return EntMTPError(f"{_named(path, field)}: cannot be read ({reason}); check its permissions")


def _named(path: Path, field: str) -> str:
    """Name of the file in an error."""
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
