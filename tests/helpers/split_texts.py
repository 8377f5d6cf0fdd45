"""Texts in chunks, as a stream brings them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hypothesis import strategies as st

from deployments.protocol.answer_format import AnswerFormat
from deployments.protocol.pieces import Content, Piece, Reasoning, ToolCall
from deployments.protocol.tool_formats.interface import ToolFormat
from entmtp.decoding.detokenizer import Detokenizer
from entmtp.decoding.outputs import RequestOutput
from tests.helpers.tokenizers import made

FUNCTIONS = frozenset({"weather", "f", "time.now"})


@st.composite
def chunks(draw: Callable[[st.SearchStrategy[list[int]]], list[int]], text: str) -> list[str]:
    """The text, cut anywhere."""
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=8)))
    return [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]


def read(answer_format: AnswerFormat, parts: Sequence[str]) -> list[Piece]:
    """Pieces of an answer that comes in these parts."""
    reader = answer_format.reader(Detokenizer(made("byte level")))
    outputs = [RequestOutput("r", text=part) for part in parts] + [RequestOutput("r", finish_reason="stop")]
    return [piece for output in outputs for piece in reader.read(output)]


def parsed(tool_format: ToolFormat, parts: Sequence[str]) -> tuple[str, list[tuple[str, str]]]:
    """Text, and names and arguments of the calls, in an answer that comes in these parts."""
    pieces = read(AnswerFormat(tool_format, FUNCTIONS), parts)
    calls = [(one.name, one.arguments) for one in pieces if isinstance(one, ToolCall)]
    return "".join(one.text for one in pieces if isinstance(one, Content)), calls


def split(parts: Sequence[str], is_open: bool) -> tuple[str, str]:
    """Reasoning and content of an answer that comes in these parts."""
    pieces = read(AnswerFormat(reasons=True, opens_reasoning=is_open), parts)
    texts = {kind: "".join(one.text for one in pieces if isinstance(one, kind)) for kind in (Reasoning, Content)}
    return texts[Reasoning], texts[Content]
