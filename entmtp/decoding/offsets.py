"""Offsets of tokens in the text of an answer."""

from __future__ import annotations

import codecs
from abc import ABC, abstractmethod
from collections.abc import Sequence

from entmtp.decoding.detokenizer import CONTEXT, Detokenizer
from entmtp.decoding.incremental_decoder import IncrementalDecoder


class Offsets(ABC):
    """Finds them for one answer, in order.

    A token that begins within a character begins where that does; one without text where the next token's would.
    """

    @abstractmethod
    def take(self, tokens: Sequence[tuple[int, bytes]], ended: bool) -> list[int]:
        """Offsets of the next tokens, each of which comes with its spelling; ``ended`` if no other comes after them."""


def offsets_after(detokenizer: Detokenizer, prompt: Sequence[int]) -> Offsets:
    """Offsets of an answer whose text goes on from the ``prompt``'s, if that has any tokens."""
    if detokenizer.reach in ("token", "bytes"):
        return _StreamOffsets(detokenizer, prompt)
    return _SpeltOffsets(detokenizer, prompt)


class _SpeltOffsets(Offsets):
    """Counts the characters that tokens spell: the text of a byte-level vocabulary is made of nothing else.

    Bytes that begin a character which does not come are one replacement character.
    """

    def __init__(self, detokenizer: Detokenizer, prompt: Sequence[int]) -> None:
        self._at = 0
        self._part = b""
        self._of_prompt = False
        for token in detokenizer.context(prompt)[-CONTEXT:]:
            self._begin(detokenizer.spelling(token))
        # Half a character at the prompt's end is the answer's if the answer finishes it, and nobody's otherwise.
        self._at, self._of_prompt = 0, bool(self._part)

    def take(self, tokens: Sequence[tuple[int, bytes]], ended: bool) -> list[int]:
        return [self._begin(spelling) for _, spelling in tokens]

    def _begin(self, spelling: bytes) -> int:
        """Takes one token; returns its offset."""
        begins = [self._add(byte) for byte in spelling]
        return begins[0] if begins else self._at

    def _add(self, byte: int) -> int:
        """Takes one byte; returns where the character that it is in begins."""
        found = _characters(self._part + bytes([byte]))
        if found is None and self._part:
            self._at += not self._of_prompt
            self._part, self._of_prompt = b"", False
            found = _characters(bytes([byte]))
        begin = self._at
        count, self._part = (1, b"") if found is None else found  # None: no character begins so
        self._at += count
        self._of_prompt = self._of_prompt and not count
        return begin


class _StreamOffsets(Offsets):
    """Counts the characters of the text as it comes. That which byte tokens spell waits until another token comes.

    One byte that belongs to no character makes each byte token of the run a replacement character. Until one comes,
    they count as the characters that they spell.
    """

    def __init__(self, detokenizer: Detokenizer, prompt: Sequence[int]) -> None:
        self._detokenizer = detokenizer
        self._decoder = IncrementalDecoder(detokenizer, prompt)
        self._given = 0
        self._run = _Run(_last_bytes(detokenizer, prompt))

    def take(self, tokens: Sequence[tuple[int, bytes]], ended: bool) -> list[int]:
        offsets: list[int] = []
        waiting: list[tuple[int, int]] = []  # by index among the offsets and in the run
        for token, spelling in tokens:
            text = self._decoder.push(token)
            if self._ends_run(token):
                self._mend(offsets, waiting, True)
                waiting, self._run = [], _Run()
                begin, self._given = self._given, self._given + len(text)
                offsets.append(max(begin, self._given - len(spelling.decode())))
            else:
                waiting.append((len(offsets), self._run.tokens))
                offsets.append(self._given + self._run.characters)
                if self._detokenizer.has_text(token):
                    self._run.add(spelling)
        self._mend(offsets, waiting, ended)
        return offsets

    def _ends_run(self, token: int) -> bool:
        return self._detokenizer.has_text(token) and self._detokenizer.byte(token) is None

    def _mend(self, offsets: list[int], waiting: Sequence[tuple[int, int]], ended: bool) -> None:
        """Counts the run's tokens one by one if they spell no text."""
        if self._run.broken or (ended and self._run.part):
            for at, number in waiting:
                offsets[at] = self._given + number


class _Run:
    """Byte tokens in a row.

    Attributes:
        tokens: those that were added.
        characters: that they finished.
        part: bytes of a character that others may finish.
        broken: whether a byte belongs to no character.
    """

    def __init__(self, part: bytes = b"") -> None:
        self.tokens = self.characters = 0
        self.part, self.broken = part, False

    def add(self, spelling: bytes) -> None:
        """One more, which spells a byte, or nothing where that is a space which the text leaves out."""
        self.tokens += 1
        found = None if self.broken else _characters(self.part + spelling)
        count, self.part = found or (0, b"")
        self.characters += count
        self.broken = found is None


def _last_bytes(detokenizer: Detokenizer, prompt: Sequence[int]) -> bytes:
    """The bytes at a prompt's end that may still become a character."""
    found = b""
    for byte in map(detokenizer.byte, detokenizer.context(prompt)):
        found = b"" if byte is None else found + bytes([byte])
    return found


def _characters(spelling: bytes) -> tuple[int, bytes] | None:
    """The number of characters that bytes finish, and the part of one behind them; None if they are no text."""
    try:
        text, used = codecs.utf_8_decode(spelling, "strict", False)
    except UnicodeDecodeError:
        return None
    part = spelling[used:]
    # Python waits for the end of half a surrogate too, which is no text.
    return None if b"\xed\xa0" <= part < b"\xee" else (len(text), part)
