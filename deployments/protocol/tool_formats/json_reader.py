"""Reading of one JSON object, character by character, as strictly as RFC 8259.

The first wrong character ends the attempt, so that text that merely looks like JSON is known early. Values are returned
as they are written, without the white space between them: decoding and encoding them again would change numbers.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Generator, Mapping
from typing import TypeVar

from deployments.protocol.tool_formats.interface import FoundCall, NotACallError

T = TypeVar("T")
Reading = Generator[None, str, T]
"""Takes one character at a time and returns what they make together."""

SPACE = " \t\r\n"
_DEEPEST = 64
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_IN_NUMBER = frozenset("-+.eE0123456789")
_WORDS = {"t": "true", "f": "false", "n": "null"}
_ESCAPED = frozenset('"\\/bfnrt')
_HEX = frozenset("0123456789abcdefABCDEF")


def expect(condition: bool) -> None:
    """Raise NotACallError unless the condition holds."""
    if not condition:
        raise NotACallError


def skip_space() -> Reading[str]:
    """First character that is not white space."""
    while (char := (yield)) in SPACE:
        pass
    return char


def read_text(text: str) -> Reading[None]:
    """Exactly this text."""
    for expected in text:
        expect((yield) == expected)


def read_object() -> Reading[dict[str, str]]:
    """Members of an object, as written, after its opening brace has been read.

    Raises:
        NotACallError: it is no object, or a name comes twice.
    """
    members: dict[str, str] = {}
    char = yield from skip_space()
    while char != "}":
        written: list[str] = []
        expect(char == '"')
        yield from _string(written)
        name = str(json.loads("".join(written)))
        expect(name not in members and (yield from skip_space()) == ":")
        value: list[str] = []
        after = yield from _value((yield from skip_space()), value, 1)
        members[name] = "".join(value)
        expect(after in {",", "}"})
        char = after if after == "}" else (yield from skip_space())
        expect(after == "}" or char != "}")
    return members


def read_written_object() -> Reading[str]:
    """An object as written, after its opening brace has been read."""
    written: list[str] = []
    yield from _nested("{", written, 0)
    return "".join(written)


def call_in(members: Mapping[str, str], *argument_keys: str) -> FoundCall:
    """Call that an object describes: its name, and the arguments under one of the keys.

    Raises:
        NotACallError: the object has other members, or the arguments are no object.
    """
    keys = [key for key in argument_keys if key in members]
    expect("name" in members and len(keys) == 1 and members.keys() <= {"name", "type", "id", *keys})
    name, arguments = json.loads(members["name"]), members[keys[0]]
    expect(isinstance(name, str) and arguments.startswith("{"))
    return FoundCall(name, arguments)


def _value(char: str, written: list[str], depth: int) -> Reading[str]:
    """A value that begins with ``char``, added to ``written``; returns the next character after it but white space."""
    expect(depth < _DEEPEST)
    after: str | None = None
    if char == '"':
        yield from _string(written)
    elif char in "{[":
        yield from _nested(char, written, depth)
    elif char in _WORDS:
        yield from read_text(_WORDS[char][1:])
        written.append(_WORDS[char])
    else:
        after = yield from _number(char, written)
    return after if after is not None and after not in SPACE else (yield from skip_space())


def _string(written: list[str]) -> Reading[None]:
    """A string whose opening quote has been read."""
    written.append('"')
    while True:
        written.append(char := (yield))
        if char == '"':
            return
        expect(char >= " ")
        if char == "\\":
            written.append(char := (yield))
            if char == "u":
                for _ in range(4):
                    written.append(digit := (yield))
                    expect(digit in _HEX)
            else:
                expect(char in _ESCAPED)


def _number(char: str, written: list[str]) -> Reading[str]:
    """A number; returns the character after it."""
    digits: list[str] = []
    while char in _IN_NUMBER:
        digits.append(char)
        char = yield
    number = "".join(digits)
    # Python reads neither infinite numbers nor integers of thousands of digits.
    expect(_NUMBER.fullmatch(number) is not None and math.isfinite(float(number)))
    written.append(number)
    return char


def _nested(opening: str, written: list[str], depth: int) -> Reading[None]:
    """An object or array whose ``opening`` has been read."""
    closing = "}" if opening == "{" else "]"
    written.append(opening)
    char = yield from skip_space()
    empty = char == closing
    while not empty:
        if opening == "{":
            expect(char == '"')
            yield from _string(written)
            expect((yield from skip_space()) == ":")
            written.append(":")
            char = yield from skip_space()
        after = yield from _value(char, written, depth + 1)
        expect(after in {",", closing})
        if after == closing:
            break
        written.append(after)
        char = yield from skip_space()
    written.append(closing)
