"""Bytes that a tokenizer's tokens spell, and how far back a new token may change the decoded text.

:class:`tokenizers.Tokenizer` decodes whole sequences. Streaming also needs to know which part of the text no later
token can change. That depends on the tokenizer's decoder, see :data:`Reach`.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator, Sequence
from itertools import islice, takewhile
from typing import Any, Literal

from tokenizers import Tokenizer

REPLACEMENT = "\ufffd"
"""Replacement for invalid bytes in a decoded text."""

Reach = Literal["token", "character", "bytes", "text"]
"""Reach of a new token: how far back it may change the decoded text.

'token': not at all (WordPiece, Metaspace, plain words).
'character': to the start of an unfinished character (byte-level vocabularies).
'bytes': to the start of the byte tokens (``<0x0A>``) at the end (byte fallback: Llama 2, Mistral, Gemma). One byte in
    them that belongs to no character makes each of them a replacement character.
'text': to the first token. The decoder edits the text as a whole, or is unknown.
"""

CONTEXT = 8
"""Tokens that are decoded again before new ones. The start of a character is at most 3 tokens back."""

_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_PRINTABLE = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
_UNPRINTABLE = [byte for byte in range(256) if byte not in _PRINTABLE]
_BYTE_OF_SIGN = {chr(byte): byte for byte in _PRINTABLE} | {chr(256 + at): byte for at, byte in enumerate(_UNPRINTABLE)}
"""Alphabet in which byte-level vocabularies (GPT-2's and most later ones) write bytes."""


class Detokenizer:
    """Decodes the tokens of one tokenizer. Ids beyond the vocabulary have no text.

    Attributes:
        reach: how far back a new token may change the text.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = True) -> None:
        """``skip_special`` gives special tokens no text; otherwise it is their name."""
        self._tokenizer, self._skips_special = tokenizer, skip_special
        added = tokenizer.get_added_tokens_decoder().values() if skip_special else ()
        self._special = {one.content for one in added if one.special}
        self._spelt: dict[tuple[int, bool], bytes] = {}
        self.reach = _reach(tokenizer)
        self._anchor = next(self._anchors(), None)
        self._anchor_text = "" if self._anchor is None else self.decode([self._anchor])

    def decode(self, tokens: Sequence[int]) -> str:
        """Decode a sequence."""
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=self._skips_special))

    def name(self, token: int) -> str:
        """Name of the token in the vocabulary; empty for an id beyond it."""
        return str(self._tokenizer.id_to_token(token) or "")

    def has_text(self, token: int) -> bool:
        """Whether decoding uses a token at all."""
        name = self._tokenizer.id_to_token(token)
        return name is not None and name not in self._special and (name != "" or self.reach != "character")

    def byte(self, token: int) -> int | None:
        """Byte that a byte token (``<0x0A>``) stands for; None for any other token."""
        name = self.name(token) if self.reach == "bytes" else ""
        return int(name[3:5], 16) if _BYTE_TOKEN.fullmatch(name) else None

    def spelling(self, token: int, first: bool = False) -> bytes:
        """Bytes that a token adds to a text, which may be a part of a character; ``first`` if it is the first token.

        Many tokenizers leave out the space before a text's first word.
        """
        if (token, first) not in self._spelt:
            self._spelt[token, first] = self._spell(token, first) if self.has_text(token) else b""
        return self._spelt[token, first]

    def context(self, tokens: Sequence[int]) -> list[int]:
        """A few tokens after which a text decodes as it does after all ``tokens``.

        They include an unfinished character at the end. They leave out characters that byte tokens have finished, so
        that no later token can change these.
        """
        if self.reach == "text" or self._anchor is None:
            return list(filter(self.has_text, tokens))
        tail = list(islice(filter(self.has_text, reversed(tokens)), CONTEXT + 1))
        if not tail or (len(tail) <= CONTEXT and self.byte(tail[0]) is None):
            return tail[::-1]
        run = list(takewhile(lambda token: self.byte(token) is not None, tail))[::-1]
        words = tail[len(run) : CONTEXT][::-1]
        return [self._anchor, *words, *self._unfinished(run)]

    def _unfinished(self, run: list[int]) -> list[int]:
        """Byte tokens at the end of a ``run`` that may still become a character."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        decoder.decode(bytes(byte for token in run if (byte := self.byte(token)) is not None))
        return run[len(run) - len(decoder.getstate()[0]) :]

    def _anchors(self) -> Iterator[int]:
        """Tokens that can be put before another one so that it is not the first of its text."""
        for token in range(self._tokenizer.get_vocab_size()):
            if self.has_text(token) and self.byte(token) is None:
                text = self.decode([token])
                if text.strip() and REPLACEMENT not in text:
                    yield token

    def _spell(self, token: int, first: bool) -> bytes:
        text = self.decode([token])
        if not first and self._anchor is not None:
            after = self.decode([self._anchor, token])
            text = after[len(self._anchor_text) :] if after.startswith(self._anchor_text) else text
        if REPLACEMENT not in text:
            return text.encode()
        name, byte = self.name(token), self.byte(token)
        if byte is not None:
            return bytes([byte])
        if self.reach == "character" and all(sign in _BYTE_OF_SIGN for sign in name):
            return bytes(_BYTE_OF_SIGN[sign] for sign in name)
        return text.encode()


def _reach(tokenizer: Tokenizer) -> Reach:
    if tokenizer.decoder is None:
        return "token"
    try:
        state = json.loads(tokenizer.decoder.__getstate__())
    except Exception:  # the library's own exception type: a decoder written in Python has no state
        return "text"
    found: Reach = "token"
    fused = False
    for part in _parts(state):
        kind = part["type"]
        if not fused and kind == "ByteLevel" and found == "token":
            found, fused = "character", True
        elif not fused and kind == "ByteFallback" and found == "token":
            found = "bytes"
        elif not (_keeps_texts(part) if fused else _keeps_tokens(part)):
            return "text"
        fused = fused or kind == "Fuse"
    return found


def _parts(state: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if state["type"] != "Sequence":
        yield state
        return
    for part in state["decoders"]:
        yield from _parts(part)


def _keeps_tokens(part: dict[str, Any]) -> bool:
    """Whether a decoder of single tokens never changes one because of a later one."""
    return part["type"] in {"Fuse", "Strip", "Replace", "Metaspace", "WordPiece", "BPEDecoder"}


def _keeps_texts(part: dict[str, Any]) -> bool:
    """Whether a decoder of the whole text never changes its beginning because of later text."""
    kind = part["type"]
    if kind == "Strip":
        return part["stop"] == 0
    if kind == "Replace":
        return len(part["pattern"].get("String", "")) == 1
    return kind in {"Fuse", "Metaspace"}
