"""The format of an answer: how its text is taken apart into reasoning, content and tool calls.

This is done where the text is complete, after the failover: another replica that goes on with an answer sends text
alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from deployments.protocol.marker_text import MarkerText
from deployments.protocol.pieces import Content, Piece, Reasoning, ToolCall
from deployments.protocol.reasoning import ReasoningSplitter
from deployments.protocol.tool_formats.interface import ToolFormat, ToolParser
from entmtp.decoding.detokenizer import Detokenizer
from entmtp.decoding.outputs import RequestOutput


@dataclass(frozen=True)
class AnswerFormat:
    """Format of the answers to one request.

    Attributes:
        tool_format: format of tool calls; None if none are read.
        functions: names of the functions that may be called.
        parallel_calls: whether an answer may have several calls; otherwise only the first one counts.
        reasons: whether the model may write reasoning.
        opens_reasoning: whether the prompt ends inside of reasoning.
        shows_reasoning: whether the client wants the reasoning.
        markers: names of the special tokens that these formats consist of, by id.
    """

    tool_format: ToolFormat | None = None
    functions: frozenset[str] = frozenset()
    parallel_calls: bool = True
    reasons: bool = False
    opens_reasoning: bool = False
    shows_reasoning: bool = True
    markers: Mapping[int, str] = field(default_factory=dict)

    def reader(self, detokenizer: Detokenizer) -> AnswerReader:
        """Reader of one answer."""
        return AnswerReader(self, detokenizer)


TEXT_ALONE = AnswerFormat()


class AnswerReader:
    """Takes one answer apart, output by output.

    Attributes:
        called: whether it has a call.
        reasoning_tokens: tokens of the outputs that the reasoning is in, up to and with the one that ends it.
    """

    def __init__(self, answer_format: AnswerFormat, detokenizer: Detokenizer) -> None:
        self.called = False
        self.reasoning_tokens = 0
        self._format = answer_format
        self._text = MarkerText(detokenizer, answer_format.markers) if answer_format.markers else None
        self._reasoning = ReasoningSplitter(answer_format.opens_reasoning) if answer_format.reasons else None
        self._tools: ToolParser | None = None
        if answer_format.tool_format is not None:
            self._tools = answer_format.tool_format.new_parser(answer_format.functions)

    def read(self, output: RequestOutput) -> list[Piece]:
        """Pieces that the next output completes; the last output ends the answer."""
        text = output.text if self._text is None else self._text.read(output)
        last = output.finish_reason is not None
        pieces: list[Piece] = [Content(text)] if text else []
        if self._reasoning is not None:
            inside = self._reasoning.inside
            pieces = self._reasoning.push(text) + (self._reasoning.finish() if last else [])
            self.reasoning_tokens += len(output.tokens) if inside or self._reasoning.inside else 0
        if self._tools is not None:
            pieces = self._with_calls(pieces, self._tools, last)
        return [one for one in pieces if self._counts(one)]

    def _with_calls(self, pieces: list[Piece], tools: ToolParser, last: bool) -> list[Piece]:
        parsed: list[Piece] = []
        for one in pieces:
            parsed += tools.push(one.text) if isinstance(one, Content) else [one]
        return parsed + (tools.finish() if last else [])

    def _counts(self, piece: Piece) -> bool:
        if isinstance(piece, Reasoning):
            return self._format.shows_reasoning
        if isinstance(piece, Content):
            return True
        counts = self._format.parallel_calls or not self.called
        self.called = True
        return counts


def joined(pieces: Sequence[Piece]) -> tuple[str, str, list[ToolCall]]:
    """Reasoning, content and calls of a complete answer."""
    reasoning = "".join(one.text for one in pieces if isinstance(one, Reasoning))
    content = "".join(one.text for one in pieces if isinstance(one, Content))
    return reasoning, content, [one for one in pieces if isinstance(one, ToolCall)]
