"""Answers that consist of items or blocks, as those of OpenAI's Responses and Anthropic's Messages do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, NamedTuple

from openai.types import CompletionUsage

from deployments.protocol.answer_format import AnswerReader
from deployments.protocol.errors import ApiError
from deployments.protocol.pieces import Content, Piece, Reasoning, ToolCall
from entmtp.decoding.outputs import RequestOutput


class Event(NamedTuple):
    """A server-sent event with a name."""

    name: str
    data: dict[str, Any]


class ItemBuilder(ABC):
    """Builder of one answer, complete or as events.

    Attributes:
        answer: the outputs so far, added up.
    """

    def __init__(self, reader: AnswerReader, request_id: str) -> None:
        self.answer = RequestOutput(request_id)
        self.reader = reader
        self._open: type[Reasoning] | type[Content] | None = None
        self._is_empty = True

    @abstractmethod
    def result(self, usage: CompletionUsage) -> dict[str, Any]:
        """Response with the items so far, after the last output."""

    @abstractmethod
    def begin(self, usage: CompletionUsage) -> list[Event]:
        """Events before the first output."""

    @abstractmethod
    def end(self, usage: CompletionUsage) -> list[Event]:
        """Events after the last output."""

    @abstractmethod
    def failed(self, error: ApiError) -> list[Event]:
        """Events that end a broken stream."""

    @abstractmethod
    def open_text(self, kind: type[Reasoning] | type[Content]) -> Iterator[Event]:
        """Events that begin an item of reasoning or content."""

    @abstractmethod
    def add_text(self, text: str) -> Iterator[Event]:
        """Events with the next text of the open item."""

    @abstractmethod
    def close_text(self) -> Iterator[Event]:
        """Events that end the open item."""

    @abstractmethod
    def call(self, call: ToolCall) -> Iterator[Event]:
        """Events with a call, which is an item of its own."""

    def events(self, output: RequestOutput) -> list[Event]:
        """Events with what the next output adds; it is added to :attr:`answer`."""
        self.answer.add(output)
        events = [event for piece in self.reader.read(output) for event in self._piece(piece)]
        if output.finish_reason is not None:
            if self._is_empty:
                events += self._piece(Content(""))
            events += self._close()
        return events

    def _piece(self, piece: Piece) -> Iterator[Event]:
        self._is_empty = False
        if isinstance(piece, ToolCall):
            yield from self._close()
            yield from self.call(piece)
            return
        if self._open is not type(piece):
            yield from self._close()
            self._open = type(piece)
            yield from self.open_text(type(piece))
        if piece.text:
            yield from self.add_text(piece.text)

    def _close(self) -> Iterator[Event]:
        if self._open is not None:
            yield from self.close_text()
            self._open = None
