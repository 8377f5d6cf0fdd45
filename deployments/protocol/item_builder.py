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

    @abstractmethod
    def full_response(self, usage: CompletionUsage) -> dict[str, Any]:
        """Complete response with the answer, which is all in :attr:`answer`."""

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
        pieces = self.reader.read(output)
        self.answer.add(output)
        made = [event for piece in pieces for event in self._piece(piece)]
        return made + (list(self._close()) if output.finish_reason is not None else [])

    def _piece(self, piece: Piece) -> Iterator[Event]:
        if isinstance(piece, ToolCall):
            yield from self._close()
            yield from self.call(piece)
            return
        if self._open is not type(piece):
            yield from self._close()
            self._open = type(piece)
            yield from self.open_text(type(piece))
        yield from self.add_text(piece.text)

    def _close(self) -> Iterator[Event]:
        if self._open is not None:
            yield from self.close_text()
            self._open = None


def items_of(pieces: list[Piece]) -> list[Piece]:
    """Pieces of a complete answer, with adjacent text of one kind joined."""
    items: list[Piece] = []
    for piece in pieces:
        last = items[-1] if items else None
        if isinstance(piece, Content) and isinstance(last, Content):
            items[-1] = Content(last.text + piece.text)
        elif isinstance(piece, Reasoning) and isinstance(last, Reasoning):
            items[-1] = Reasoning(last.text + piece.text)
        else:
            items.append(piece)
    return items
