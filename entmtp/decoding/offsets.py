"""Offsets of tokens in an answer's text, in characters."""

from __future__ import annotations

import codecs
from abc import ABC, abstractmethod
from collections.abc import Sequence

from entmtp.decoding.detokenizer import CONTEXT, Detokenizer
from entmtp.decoding.incremental_decoder import IncrementalDecoder


class Offsets(ABC):
    """Finds the offsets of one answer's tokens, in order.

    The offset of a token that begins within a character is the character's. The offset of a token without text is the
    next token's.
    """

    @abstractmethod
    def take(self, tokens: Sequence[tuple[int, bytes]], ended: bool) -> list[int]:
        """Find the offsets of the next ``tokens`` (id, spelling); ``ended`` if no other token comes after them."""


def offsets_after(detokenizer: Detokenizer, prompt: Sequence[int]) -> Offsets:
    """Make the offsets of an answer whose text goes on from the ``prompt``'s; an empty one starts a new text."""
    if detokenizer.reach in ("token", "bytes"):
        return _StreamOffsets(detokenizer, prompt)
    return _SpeltOffsets(detokenizer, prompt)


class _SpeltOffsets(Offsets):
    """Counts the characters that tokens spell: the text of a byte-level vocabulary consists of nothing else.

    The bytes of an unfinished character are one replacement character.
    """

    def __init__(self, detokenizer: Detokenizer, prompt: Sequence[int]) -> None:
        self._at = 0
        self._part = b""
        self._of_prompt = False
        for token in detokenizer.context(prompt)[-CONTEXT:]:
            self._begin(detokenizer.spelling(token))
        # An unfinished character at the prompt's end belongs to the answer if the answer finishes it, else to neither.
        self._at, self._of_prompt = 0, bool(self._part)

    def take(self, tokens: Sequence[tuple[int, bytes]], ended: bool) -> list[int]:
        return [self._begin(spelling) for _, spelling in tokens]

    def _begin(self, spelling: bytes) -> int:
        """Add a token; returns its offset."""
        begins = [self._add(byte) for byte in spelling]
        return begins[0] if begins else self._at

    def _add(self, byte: int) -> int:
        """Add a byte; returns the offset of its character."""
        found = _characters(self._part + bytes([byte]))
        if found is None and self._part:
            self._at += not self._of_prompt
            self._part, self._of_prompt = b"", False
            found = _characters(bytes([byte]))
        begin = self._at
        count, self._part = (1, b"") if found is None else found  # None: no character begins with these bytes
        self._at += count
        self._of_prompt = self._of_prompt and not count
        return begin


class _StreamOffsets(Offsets):
    """Counts the characters of the decoded text. The text of byte tokens is decoded once another token follows them.

    One byte that belongs to no character turns each byte token of the run into a replacement character. Before, byte
    tokens count as the characters that they spell.
    """

    def __init__(self, detokenizer: Detokenizer, prompt: Sequence[int]) -> None:
        self._detokenizer = detokenizer
        self._decoder = IncrementalDecoder(detokenizer, prompt)
        self._decoded = 0
        self._run = _Run(_last_bytes(detokenizer, prompt))

    def take(self, tokens: Sequence[tuple[int, bytes]], ended: bool) -> list[int]:
        offsets: list[int] = []
        waiting: list[tuple[int, int]] = []  # by index among the offsets and in the run
        for token, spelling in tokens:
            text = self._decoder.push(token)
            if self._ends_run(token):
                self._correct(offsets, waiting, True)
                waiting, self._run = [], _Run()
                begin, self._decoded = self._decoded, self._decoded + len(text)
                offsets.append(max(begin, self._decoded - len(spelling.decode())))
            else:
                waiting.append((len(offsets), self._run.tokens))
                offsets.append(self._decoded + self._run.characters)
                if self._detokenizer.has_text(token):
                    self._run.add(spelling)
        self._correct(offsets, waiting, ended)
        return offsets

    def _ends_run(self, token: int) -> bool:
        return self._detokenizer.has_text(token) and self._detokenizer.byte(token) is None

    def _correct(self, offsets: list[int], waiting: Sequence[tuple[int, int]], ended: bool) -> None:
        """Count one character per token of the run if its bytes are not valid text."""
        if self._run.broken or (ended and self._run.part):
            for at, number in waiting:
                offsets[at] = self._decoded + number


class _Run:
    """Consecutive byte tokens.

    Attributes:
        tokens: their number.
        characters: number of finished characters.
        part: bytes of an unfinished character.
        broken: whether a byte belongs to no character.
    """

    def __init__(self, part: bytes = b"") -> None:
        self.tokens = self.characters = 0
        self.part, self.broken = part, False

    def add(self, spelling: bytes) -> None:
        """Add a byte token; ``spelling`` is its byte, or empty for a space that the text leaves out."""
        self.tokens += 1
        found = None if self.broken else _characters(self.part + spelling)
        count, self.part = found or (0, b"")
        self.characters += count
        self.broken = found is None


def _last_bytes(detokenizer: Detokenizer, prompt: Sequence[int]) -> bytes:
    """Bytes at a prompt's end that may still become a character."""
    found = b""
    for byte in map(detokenizer.byte, detokenizer.context(prompt)):
        found = b"" if byte is None else found + bytes([byte])
    return found


def _characters(spelling: bytes) -> tuple[int, bytes] | None:
    """Number of finished characters and the bytes of an unfinished one after them; None for invalid UTF-8."""
    try:
        text, used = codecs.utf_8_decode(spelling, "strict", False)
    except UnicodeDecodeError:
        return None
    part = spelling[used:]
    # Python also takes half of a surrogate for an unfinished character, but surrogates are not valid text.
    return None if b"\xed\xa0" <= part < b"\xee" else (len(text), part)
