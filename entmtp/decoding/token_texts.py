"""The text and the bytes of each token of an answer, as log-probabilities report them."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import dataclass

from entmtp.decoding.detokenizer import Detokenizer
from entmtp.decoding.logprobs import TokenLogprobs


@dataclass(frozen=True)
class TokenText:
    """One token.

    Attributes:
        text: what it adds to the answer's text. Instead of a part of a character, which is no text, its bytes:
            ``bytes:\\xf0\\x9f``. A special token, which adds nothing, is there by its name.
        bytes: that it adds to the text; joined, those of the answer's tokens are its text.
    """

    text: str
    bytes: bytes
    logprob: float


@dataclass(frozen=True)
class Position:
    """One token of an answer, and the likeliest ones at its position.

    Attributes:
        top: the likeliest tokens, likeliest first. No two different tokens of a position have one text: the less likely
            one is named ``token_id:7``.
        offset: characters of the answer's text before this token.
    """

    chosen: TokenText
    top: list[TokenText]
    offset: int


class TokenTexts:
    """The tokens of one answer, in order."""

    def __init__(self, detokenizer: Detokenizer, continues_text: bool = False) -> None:
        """``continues_text`` if text is before the answer: it keeps the space before its first word."""
        self._detokenizer = detokenizer
        self._first = not continues_text
        self._characters = codecs.getincrementaldecoder("utf-8")("replace")
        self._offset = 0

    def take(self, tokens: Sequence[int], logprobs: Sequence[TokenLogprobs]) -> list[Position]:
        """Describes the next tokens of the answer; ``logprobs`` has one entry for each."""
        return [self._take(token, each) for token, each in zip(tokens, logprobs, strict=True)]

    def _take(self, token: int, logprobs: TokenLogprobs) -> Position:
        names: dict[str, int] = {}
        chosen = self._text(token, logprobs.chosen, names)
        position = Position(chosen, [self._text(*one, names) for one in logprobs.top], self._offset)
        self._offset += len(self._characters.decode(chosen.bytes))
        self._first = self._first and not self._detokenizer.has_text(token)
        return position

    def _text(self, token: int, logprob: float, names: dict[str, int]) -> TokenText:
        spelling = self._detokenizer.spelling(token, self._first)
        text = _readable(spelling) if self._detokenizer.has_text(token) else self._detokenizer.name(token)
        if names.setdefault(text, token) != token:
            text = f"token_id:{token}"
        return TokenText(text, spelling, logprob)


def _readable(spelling: bytes) -> str:
    try:
        return spelling.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in spelling)
