"""The one exception that a user's mistake raises, and how a mistake quotes what the user gave."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping
from typing import Any

SHOWN = 80
"""Characters of a value that an error quotes, at most."""


class EntMTPError(ValueError):
    """Bad input or an unsupported model.

    The message is a single line that names the field, the value and the fix; the command line prints it without a
    traceback and the HTTP layer wraps it in an OpenAI-style error body.
    """


class _Short(reprlib.Repr):
    """A ``repr`` that reads no more of a value than it shows."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = self.maxlong = SHOWN
        self.maxlevel, self.maxlist, self.maxdict = 3, 4, 4

    def repr_int(self, x: int, level: int) -> str:
        # Python refuses to write integers of thousands of digits.
        return repr(x) if x.bit_length() < 256 else f"an integer of {x.bit_length()} bits"


_repr = _Short().repr


def shown(value: object) -> str:
    """Quotation of a value in an error: one line of at most :data:`SHOWN` characters."""
    text = _repr(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…"


def validation_message(error: Mapping[str, Any], field: str) -> str:
    """One line for pydantic's ``error`` about ``field``: its name, the value, shortened, and the rule."""
    if error["type"] == "value_error":  # a validator's own line, which may begin with a field inside of this one
        line = str(error["ctx"]["error"])
        parts = [field, line] if field else [line]
        return (".".join if re.match(r"[\w.]+: ", line) else ": ".join)(parts)
    return f"{field}: {shown(error['input'])} is not accepted: {uncapitalised(error['msg'])}"


def uncapitalised(sentence: str) -> str:
    """A sentence as it goes on after a colon; a first word in capitals, such as JSON, stays."""
    return sentence if sentence[1:2].isupper() else sentence[:1].lower() + sentence[1:]
