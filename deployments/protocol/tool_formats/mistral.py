"""Mistral's formats: after the special token ``[TOOL_CALLS]`` either a list of ``{"name": NAME, "arguments": OBJECT}``,
or, since tokenizer version 11, ``NAME[ARGS]OBJECT`` for each call, with ``[CALL_ID]ID`` before ``[ARGS]`` in some.

Source: the tokenizers of mistral-common, versions 1 to 13.
"""

from __future__ import annotations

import re
import secrets
import string
from collections.abc import Container

from deployments.protocol.tool_formats.interface import Attempt, CallFrame, FoundCall, TaggedParser, ToolFormat
from deployments.protocol.tool_formats.json_reader import (
    Reading,
    call_in,
    expect,
    read_object,
    read_written_object,
    skip_space,
)

OPEN, CALL_ID, ARGS = "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"
_LONGEST_HEADER = 256
_HEADER = re.compile(rf"\s*([^\s\[]+?)\s*(?:{re.escape(CALL_ID)}[A-Za-z0-9]*)?(?:{re.escape(ARGS)})?\s*")
_ALPHABET = string.ascii_letters + string.digits


class Mistral(ToolFormat):
    """The formats of Mistral's models."""

    name = "mistral"
    markers = (OPEN, CALL_ID, ARGS)
    frame = CallFrame(OPEN, "", ", ", lists_calls=True)

    def in_template(self, template: str) -> bool:
        return OPEN in template

    def new_parser(self, functions: Container[str]) -> MistralParser:
        return MistralParser(self, functions)

    def new_id(self) -> str:
        # Mistral's templates refuse ids of another length.
        return "".join(secrets.choice(_ALPHABET) for _ in range(9))


class MistralParser(TaggedParser):
    """Parser of both formats."""

    tag = OPEN

    def new_attempt(self) -> Attempt:
        char = yield from skip_space()
        calls = (yield from _listed()) if char == "[" else [(yield from _named(char))]
        expect(all(call.name in self.functions for call in calls))
        return calls


def _listed() -> Reading[list[FoundCall]]:
    """A list of calls whose opening bracket has been read."""
    calls: list[FoundCall] = []
    after = ","
    while after == ",":
        expect((yield from skip_space()) == "{")
        calls.append(call_in((yield from read_object()), "arguments"))
        after = yield from skip_space()
    expect(after == "]")
    return calls


def _named(char: str) -> Reading[FoundCall]:
    """A call whose name begins with ``char``."""
    header = ""
    while char != "{":
        header += char
        expect(len(header) < _LONGEST_HEADER)
        char = yield
    match = _HEADER.fullmatch(header)
    expect(match is not None)
    assert match is not None
    return FoundCall(match[1], (yield from read_written_object()))
