"""Incremental decoding of tokens: the parts, joined, equal the decoded whole, and no part is ever taken back."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from entmtp.decoding.detokenizer import CONTEXT, REPLACEMENT, Detokenizer


class IncrementalDecoder:
    """Decodes one sequence token by token.

    Each token costs the same, however long the text: few tokens before it are decoded again. Text that a later token
    may still change (:data:`~entmtp.decoding.detokenizer.Reach`) is returned later. If a decoder edits the text as a
    whole, all text is returned at the end.
    """

    def __init__(self, detokenizer: Detokenizer, prompt: Sequence[int] = ()) -> None:
        """``prompt`` holds the tokens that the text goes on from; its own text is not returned."""
        self._detokenizer = detokenizer
        self._window = detokenizer.context(prompt)
        self._prompt: str | None = detokenizer.decode(self._window)
        self._returned = len(self._prompt)
        self._bytes = _ByteRun()
        for token in self._window:
            self._track_byte(detokenizer.byte(token))
        self._bytes.text = ""  # characters that the prompt finishes belong to it

    def push(self, token: int) -> str:
        """Add a token; returns the text that is now final."""
        detokenizer = self._detokenizer
        if not detokenizer.has_text(token):
            return ""
        self._window.append(token)
        self._track_byte(byte := detokenizer.byte(token))
        if byte is not None or detokenizer.reach == "text":
            return ""
        text = detokenizer.decode(self._window)
        unfinished = detokenizer.reach == "character" and text.endswith(REPLACEMENT)
        return self._take(text, len(text) - unfinished)

    def likely(self) -> str:
        """Text after the final part that only an invalid byte would change: finished characters of byte tokens."""
        return self.rest() if self._detokenizer.reach == "text" else self._bytes.text

    def rest(self) -> str:
        """Text that is still to be returned if no other token comes."""
        text = self._detokenizer.decode(self._window)
        return text[self._begin(text) :]

    def _track_byte(self, byte: int | None) -> None:
        """Add the next token's byte to the run of byte tokens; None, for any other token, ends the run."""
        if byte is None:
            self._bytes = _ByteRun()
        else:
            self._bytes.add(byte)

    def _begin(self, text: str) -> int:
        """Begin of the part of the window's text that is not returned yet."""
        # An unfinished character at the prompt's end belongs to the answer if the answer finishes it, else to neither.
        return self._returned if self._prompt is None else common_length(self._prompt, text)

    def _take(self, text: str, end: int) -> str:
        begin = self._begin(text)
        taken = text[begin:end]
        self._returned = begin + len(taken)
        if taken:
            self._prompt = None
        if self._prompt is None and len(self._window) > 2 * CONTEXT:
            waiting = len(text) - self._returned
            self._window = self._detokenizer.context(self._window)
            self._returned = len(self._detokenizer.decode(self._window)) - waiting
        return taken


def common_length(first: str, second: str) -> int:
    """Length of the longest common prefix."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((at for at, (one, other) in pairs if one != other), min(len(first), len(second)))


class _ByteRun:
    """Characters that consecutive byte tokens spell; empty once a byte belongs to no character."""

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
