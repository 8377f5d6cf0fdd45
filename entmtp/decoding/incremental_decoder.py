"""Tokens decoded one by one: the parts, joined, are the decoded whole, and no part is ever taken back."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from entmtp.decoding.detokenizer import CONTEXT, REPLACEMENT, Detokenizer


class IncrementalDecoder:
    """The text of one sequence of tokens while it grows.

    Each token costs the same, however long the text: few tokens before it are decoded again. Text that a later token
    may still change (:data:`~entmtp.decoding.detokenizer.Reach`) waits. Where a decoder edits the text as a whole, all
    text comes at the end.
    """

    def __init__(self, detokenizer: Detokenizer, prompt: Sequence[int] = ()) -> None:
        """``prompt`` are tokens that the text goes on from; it is itself no part of the text."""
        self._detokenizer = detokenizer
        self._window = detokenizer.context(prompt)
        self._prompt: str | None = detokenizer.decode(self._window)
        self._given = len(self._prompt)
        self._bytes = _ByteRun()
        for token in self._window:
            self._follow(detokenizer.byte(token))
        self._bytes.text = ""  # what the prompt finishes is its own

    def push(self, token: int) -> str:
        """Takes one more token; returns the text that is now final."""
        detokenizer = self._detokenizer
        if not detokenizer.has_text(token):
            return ""
        self._window.append(token)
        self._follow(byte := detokenizer.byte(token))
        if byte is not None or detokenizer.reach == "text":
            return ""
        text = detokenizer.decode(self._window)
        unfinished = detokenizer.reach == "character" and text.endswith(REPLACEMENT)
        return self._take(text, len(text) - unfinished)

    def likely(self) -> str:
        """Text after the final part which only an invalid byte would change: finished characters of byte tokens."""
        return self.rest() if self._detokenizer.reach == "text" else self._bytes.text

    def rest(self) -> str:
        """Text that would still come if this were the last token."""
        text = self._detokenizer.decode(self._window)
        return text[self._begin(text) :]

    def _follow(self, byte: int | None) -> None:
        """Takes the next token's byte into the run of byte tokens; any other token, without a byte, ends it."""
        if byte is None:
            self._bytes = _ByteRun()
        else:
            self._bytes.add(byte)

    def _begin(self, text: str) -> int:
        """Where, in the window's text, that part begins which was not given out."""
        # An unfinished character at the prompt's end is the answer's if the answer finishes it, and nobody's otherwise.
        return self._given if self._prompt is None else common_length(self._prompt, text)

    def _take(self, text: str, end: int) -> str:
        begin = self._begin(text)
        taken = text[begin:end]
        self._given = begin + len(taken)
        if taken:
            self._prompt = None
        if self._prompt is None and len(self._window) > 2 * CONTEXT:
            waiting = len(text) - self._given
            self._window = self._detokenizer.context(self._window)
            self._given = len(self._detokenizer.decode(self._window)) - waiting
        return taken


def common_length(first: str, second: str) -> int:
    """Length of the longest text that both begin with."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((at for at, (one, other) in pairs if one != other), min(len(first), len(second)))


class _ByteRun:
    """The characters that byte tokens in a row spell, as long as all bytes belong to one."""

    def __init__(self) -> None:
        self.text = ""
        self._decoder: codecs.IncrementalDecoder | None = codecs.getincrementaldecoder("utf-8")()

    def add(self, byte: int) -> None:
        if self._decoder is None:
            return
        try:
            self.text += self._decoder.decode(bytes([byte]))
        except UnicodeDecodeError:
            self.text, self._decoder = "", None
