"""Text, bytes and offset of each token of an answer, for reports of log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from entmtp.decoding.detokenizer import Detokenizer
from entmtp.decoding.offsets import offsets_after
from entmtp.decoding.outputs import TokenLogprobs


@dataclass(frozen=True)
class TokenText:
    """Text of one token.

    Attributes:
        text: what the token adds to the answer's text. A part of a character is written as its bytes,
            ``bytes:\\xf0\\x9f``, and a special token, which adds nothing, as its name.
        bytes: the bytes that it adds; those of all tokens, joined, are the answer's text.
    """

    text: str
    bytes: bytes
    logprob: float


@dataclass(frozen=True)
class Position:
    """One token of an answer, and the likeliest tokens at its position.

    Attributes:
        top: the likeliest tokens, likeliest first. If several tokens of a position have the same text, it belongs to
            the chosen one, or else to the likeliest; the others are named ``token_id:7``.
        offset: characters of the answer's text before the token, or before the character that it is a part of. A byte
            token (``<0x0A>``) counts as a part of a character until another byte shows that it is not.
    """

    chosen: TokenText
    top: list[TokenText]
    offset: int


class TokenTexts:
    """Describes the tokens of one answer, in order."""

    def __init__(self, detokenizer: Detokenizer, prompt: Sequence[int] = ()) -> None:
        """``prompt`` holds the tokens that the answer's text goes on from: its first word then keeps its space."""
        self._detokenizer = detokenizer
        self._first = not detokenizer.context(prompt)
        self._offsets = offsets_after(detokenizer, prompt)

    def take(self, tokens: Sequence[int], logprobs: Sequence[TokenLogprobs], ended: bool = False) -> list[Position]:
        """Describe the next tokens of the answer; ``logprobs`` has one entry for each.

        ``ended`` if they are the last ones: an unfinished character at their end stays unfinished.
        """
        described = [self._describe(token, each) for token, each in zip(tokens, logprobs, strict=True)]
        spelt = [(token, chosen.bytes) for token, (chosen, _) in zip(tokens, described, strict=True)]
        offsets = self._offsets.take(spelt, ended)
        return [Position(*texts, offset) for texts, offset in zip(described, offsets, strict=True)]

    def _describe(self, token: int, logprobs: TokenLogprobs) -> tuple[TokenText, list[TokenText]]:
        names: dict[str, int] = {}
        chosen = self._text(token, logprobs.chosen, names)
        top = [self._text(*one, names) for one in logprobs.top]
        self._first = self._first and not self._detokenizer.has_text(token)
        return chosen, top

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
