"""Formats in which models write tool calls, and incremental parsers of them.

A parser takes an answer's text in any chunks and returns the same text and calls as for the whole. A call is returned
when it is complete and correct: its function is known, its arguments are a JSON object, and it is closed. Until then
its text is pending. Text that turns out not to be a call is returned as text, every character of it.
"""

from __future__ import annotations

import uuid
from abc import ABC, abstractmethod
from collections.abc import Container, Generator
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

from deployments.protocol.pieces import Content, Piece, ToolCall


class NotACallError(Exception):
    """The text is not a call after all."""


class FoundCall(NamedTuple):
    """A call as the model wrote it; ``arguments`` is a JSON object."""

    name: str
    arguments: str


Attempt = Generator[None, str, list[FoundCall]]
"""Reads a text that begins like a call, one character at a time, and returns the calls when they are complete.

Raises:
    NotACallError: the text is none.
"""


@dataclass(frozen=True)
class CallFrame:
    """Fixed text around the JSON of a call, for constrained decoding.

    Attributes:
        begin: text before the JSON.
        end: text after the JSON.
        separator: text between two calls.
        arguments_key: name of the member with the arguments.
        lists_calls: whether the JSON is a list of all calls.
    """

    begin: str
    end: str
    separator: str
    arguments_key: Literal["arguments", "parameters"] = "arguments"
    lists_calls: bool = False


class ToolFormat(ABC):
    """A format of tool calls.

    Attributes:
        name: name in the service's settings.
        markers: texts of the format that a tokenizer may have as special tokens, which decoding leaves out.
        frame: how a call can be constrained; None if a JSON schema can't describe it.
    """

    name: ClassVar[str]
    markers: ClassVar[tuple[str, ...]] = ()
    frame: ClassVar[CallFrame | None] = None

    @abstractmethod
    def in_template(self, template: str) -> bool:
        """Whether a chat template that takes tools describes this format."""

    @abstractmethod
    def new_parser(self, functions: Container[str]) -> ToolParser:
        """Parser of one answer, in which calls of these functions count."""

    def new_id(self) -> str:
        """Id for a new call."""
        return f"call_{uuid.uuid4().hex[:24]}"


class ToolParser(ABC):
    """Incremental parser of one answer.

    White space before a call, and between the last call and the end, belongs to the format and is left out.
    """

    def __init__(self, tool_format: ToolFormat, functions: Container[str]) -> None:
        self.functions = functions
        self._format = tool_format
        # Text that is not returned yet: it may begin a call, or belongs to the call that is being read.
        self._pending = ""
        self._attempt: Attempt | None = None
        self._read = 0
        self._after_call = False

    @abstractmethod
    def find_opening(self, text: str, after_call: bool) -> tuple[int, int] | None:
        """Begin and end of the first text that may open a call, with the white space before it; None without one.

        The calls' other text is read by :meth:`new_attempt`.
        """

    @abstractmethod
    def undecided(self, text: str, after_call: bool) -> int:
        """Begin of the part of a text without an opening that may still become one, with white space before it."""

    @abstractmethod
    def new_attempt(self) -> Attempt:
        """Reader of the text after an opening."""

    def push(self, text: str) -> list[Piece]:
        """Add text; returns what is decided now."""
        self._pending += text
        pieces: list[Piece] = []
        while self._attempt is not None or self._begin_attempt(pieces):
            if (calls := self._continue_attempt(pieces)) is None:
                break
            pieces += [ToolCall(self._format.new_id(), *call) for call in calls]
        return pieces

    def finish(self) -> list[Piece]:
        """End the answer; returns what is still pending, as text."""
        text, self._pending, self._attempt = self._pending, "", None
        return [] if self._after_call and not text.strip() else self._as_text(text)

    def _begin_attempt(self, pieces: list[Piece]) -> bool:
        """Return the text before the next opening, and whether there is one."""
        found = self.find_opening(self._pending, self._after_call)
        start, self._read = found or (self.undecided(self._pending, self._after_call), 0)
        pieces += self._as_text(self._pending[:start])
        self._pending, self._read = self._pending[start:], self._read - start
        if found is None:
            return False
        self._attempt = self.new_attempt()
        next(self._attempt)
        return True

    def _continue_attempt(self, pieces: list[Piece]) -> list[FoundCall] | None:
        """Read on; returns the calls of a complete attempt, none of a failed one, and None if more must come."""
        assert self._attempt is not None
        try:
            while self._read < len(self._pending):
                self._read += 1
                self._attempt.send(self._pending[self._read - 1])
        except StopIteration as complete:
            self._pending, self._attempt, self._after_call = self._pending[self._read :], None, True
            return list(complete.value)
        except NotACallError:
            self._attempt = None
            # Only what was read is decided, and its end may begin the next opening.
            start = self.undecided(self._pending[: self._read], after_call=False)
            pieces += self._as_text(self._pending[:start])
            self._pending = self._pending[start:]
            return []
        return None

    def _as_text(self, text: str) -> list[Piece]:
        if not text:
            return []
        self._after_call = False
        return [Content(text)]


class TaggedParser(ToolParser):
    """Parser of a format whose calls may follow any text, each after ``tag``."""

    tag: ClassVar[str]

    def find_opening(self, text: str, after_call: bool) -> tuple[int, int] | None:
        at = text.find(self.tag)
        return None if at < 0 else (len(text[:at].rstrip()), at + len(self.tag))

    def undecided(self, text: str, after_call: bool) -> int:
        lengths = range(min(len(self.tag) - 1, len(text)), 0, -1)
        partial = next((n for n in lengths if self.tag.startswith(text[-n:])), 0)
        return len(text[: len(text) - partial].rstrip())


class LeadingParser(ToolParser):
    """Parser of a format whose calls are the whole answer, or its beginning; ``opening`` is one character."""

    opening: ClassVar[str]
    separators: ClassVar[str] = ""

    def __init__(self, tool_format: ToolFormat, functions: Container[str]) -> None:
        super().__init__(tool_format, functions)
        self._may_begin = True

    def find_opening(self, text: str, after_call: bool) -> tuple[int, int] | None:
        at = len(text) - len(self._stripped(text, after_call))
        return (0, at + 1) if self._may_begin and text[at : at + 1] == self.opening else None

    def undecided(self, text: str, after_call: bool) -> int:
        if self._may_begin and not self._stripped(text, after_call):
            return 0
        self._may_begin = False
        return len(text)

    def _stripped(self, text: str, after_call: bool) -> str:
        return text.lstrip(f" \t\r\n{self.separators}" if after_call else None)
