"""Reasoning that a model writes before its answer, between ``<think>`` and ``</think>``.

Qwen3 and DeepSeek-R1 write it so, and many models after them. Some chat templates end with ``<think>``: the answer then
begins inside of the reasoning. White space around the reasoning belongs to the format and is left out.
"""

from __future__ import annotations

from deployments.protocol.pieces import Content, Piece, Reasoning

OPEN, CLOSE = "<think>", "</think>"
MARKERS = OPEN, CLOSE


def opens_reasoning(prompt: str) -> bool:
    """Whether the prompt ends inside of reasoning."""
    return prompt.rstrip().endswith(OPEN)


class ReasoningSplitter:
    """Incremental splitter of one answer's text.

    Reasoning counts only at the beginning of an answer. An answer that ends within it has no content.

    Args:
        is_open: whether the answer begins inside of the reasoning.
    """

    def __init__(self, is_open: bool) -> None:
        self._stage = "reasoning" if is_open else "beginning"
        self._pending = ""
        # Whether the next text begins a part, whose first white space is left out.
        self._begins = is_open

    @property
    def inside(self) -> bool:
        """Whether the reasoning is not at its end."""
        return self._stage == "reasoning"

    def push(self, text: str) -> list[Piece]:
        """Add text; returns what is decided now."""
        self._pending += text
        pieces: list[Piece] = []
        if self._stage == "beginning":
            self._open()
        if self._stage == "reasoning":
            pieces += self._reasoning()
        if self._stage == "content":
            pieces += self._content()
        return pieces

    def finish(self) -> list[Piece]:
        """End the answer; returns what is still pending."""
        if self._stage == "reasoning":
            text = self._pending.strip() if self._begins else self._pending.rstrip()
            return [Reasoning(text)] if text else []
        return [Content(self._pending)] if self._pending and not self._begins else []

    def _open(self) -> None:
        start = self._pending.lstrip()
        if start.startswith(OPEN):
            self._stage, self._begins, self._pending = "reasoning", True, start[len(OPEN) :]
        elif not OPEN.startswith(start):
            self._stage = "content"

    def _reasoning(self) -> list[Piece]:
        if self._begins:
            self._pending = self._pending.lstrip()
            self._begins = not self._pending
        text, found, rest = self._pending.partition(CLOSE)
        if found:
            self._stage, self._begins, self._pending = "content", True, rest
            text = text.rstrip()
        else:
            lengths = range(min(len(CLOSE) - 1, len(text)), 0, -1)
            partial = next((n for n in lengths if CLOSE.startswith(text[-n:])), 0)
            text = text[: len(text) - partial].rstrip()
            self._pending = self._pending[len(text) :]
        return [Reasoning(text)] if text else []

    def _content(self) -> list[Piece]:
        if self._begins:
            self._pending = self._pending.lstrip()
            self._begins = not self._pending
        text, self._pending = self._pending, ""
        return [Content(text)] if text else []
