"""The exception for user errors, and the quotation of values in its messages."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping
from typing import Any

MAX_QUOTED = 80
"""Maximum number of characters of a value that an error quotes."""


class EntMTPError(ValueError):
    """Bad input or an unsupported model.

    The message is a single line that names the field, the value and the fix. The command line prints it without a
    traceback, and the HTTP layer wraps it in an OpenAI-style error body.
    """


class _Short(reprlib.Repr):
    """A ``repr`` that reads only as much of a value as it quotes."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = self.maxlong = MAX_QUOTED
        self.maxlevel, self.maxlist, self.maxdict = 3, 4, 4

    def repr_int(self, x: int, level: int) -> str:
        # Python refuses to write integers of thousands of digits.
        return repr(x) if x.bit_length() < 256 else f"an integer of {x.bit_length()} bits"


_repr = _Short().repr


def quoted(value: object) -> str:
    """Quotation of a value in an error: one line of at most :data:`MAX_QUOTED` characters."""
    text = _repr(value)
    return text if len(text) <= MAX_QUOTED else f"{text[: MAX_QUOTED - 1]}…"


def validation_message(error: Mapping[str, Any], field: str) -> str:
    """One line for pydantic's ``error`` about ``field``: its name, the quoted value and the rule."""
    if error["type"] == "value_error":  # a validator's own line, which may begin with a nested field
        line = str(error["ctx"]["error"])
        parts = [field, line] if field else [line]
        return (".".join if re.match(r"[\w.]+: ", line) else ": ".join)(parts)
    return f"{field}: {quoted(error['input'])} is not accepted: {uncapitalise(error['msg'])}"


def uncapitalise(sentence: str) -> str:
    """Lower the first letter, for use after a colon; a first word in capitals, such as JSON, stays."""
    return sentence if sentence[1:2].isupper() else sentence[:1].lower() + sentence[1:]
