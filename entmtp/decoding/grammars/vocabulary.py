"""Vocabulary of a model as llguidance needs it: the bytes that each token adds to an answer's text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokenizers import Tokenizer

from entmtp.decoding.detokenizer import Detokenizer

if TYPE_CHECKING:
    from llguidance import LLTokenizer

_SENTINEL = "\x02"
"""Character before a text that is tokenized, so that the text is not the first one, to which some put a space."""


class _TokenTable:
    """Tokens and tokenizer in the form in which :class:`LLTokenizer` takes them.

    A token beyond the model's stands for the end of the text: a request decides which tokens end it. More tokens may
    follow, which only spell what no others do.
    """

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, spellings: Sequence[bytes], special: Sequence[int]) -> None:
        self.tokens = [*spellings, b"<end of the answer>"]
        self.eos_token_id = len(spellings)
        self.special_token_ids = [*special, self.eos_token_id]
        self._tokenizer = tokenizer
        self._sentinel = tokenizer.encode(_SENTINEL, add_special_tokens=False).ids
        self._ordinary = {spelling: token for token, spelling in enumerate(spellings) if spelling}
        for token in special:
            self._ordinary.pop(self.tokens[token], None)
        self._longest = max(map(len, self._ordinary), default=1)

    def __call__(self, text: str | bytes) -> list[int]:
        """Tokenize a text that the grammar forces, as the model's own tokenizer would in the middle of a text."""
        data = text if isinstance(text, bytes) else text.encode()
        ids = self._tokenizer.encode(_SENTINEL + data.decode(errors="replace"), add_special_tokens=False).ids
        ids = ids[len(self._sentinel) :] if ids[: len(self._sentinel)] == self._sentinel else []
        return ids if self._spell(ids) == data else self._greedy(data)

    def spelling_tokens(self, data: bytes) -> list[int]:
        """Tokens that spell these bytes in the middle of a text; a new one if no others do."""
        ids = self._greedy(data)
        if self._spell(ids) != data:
            ids = [len(self.tokens)]
            self.tokens.append(data)
        return ids

    def make(self) -> LLTokenizer:
        """Make llguidance's own table; no token can be added afterwards."""
        from llguidance import LLTokenizer

        # The stub wants llguidance's own class, the library only these attributes.
        wrapper: object = self
        return LLTokenizer(wrapper, n_vocab=len(self.tokens), eos_token=self.eos_token_id)  # type: ignore[arg-type]

    def _spell(self, ids: Sequence[int]) -> bytes:
        return b"".join(self.tokens[token] for token in ids)

    def _greedy(self, data: bytes) -> list[int]:
        """The longest token at each position, up to bytes that no token spells."""
        ids: list[int] = []
        while data:
            lengths = range(min(self._longest, len(data)), 0, -1)
            length = next((length for length in lengths if data[:length] in self._ordinary), None)
            if length is None:
                break
            ids.append(self._ordinary[data[:length]])
            data = data[length:]
        return ids


@dataclass(frozen=True)
class GrammarVocabulary:
    """Vocabulary of one model.

    Attributes:
        size: number of the model's tokens; the token of this number stands for the end of the text.
        tokens: the tokens as they are spelt within a text.
        first_tokens: as the first token of a text, whose space many tokenizers leave out; None if that is the same.
        first_spellings: for each token that is spelt otherwise there, the tokens that spell the same within a text.
    """

    size: int
    tokens: LLTokenizer
    first_tokens: LLTokenizer | None
    first_spellings: dict[int, list[int]]

    @classmethod
    def of(cls, tokenizer: Tokenizer, size: int) -> GrammarVocabulary:
        """Make the vocabulary of a model of ``size`` tokens; takes some tenths of a second."""
        detokenizer = Detokenizer(tokenizer)
        special = [token for token in range(size) if not detokenizer.has_text(token)]
        # A special token has a name for grammars that ask for it, but no text that others could match.
        names = {token: detokenizer.name(token).encode() for token in special}
        spellings = [names.get(token) or detokenizer.spelling(token) for token in range(size)]
        firsts = [names.get(token) or detokenizer.spelling(token, first=True) for token in range(size)]
        named = [token for token in special if spellings[token]]
        table = _TokenTable(tokenizer, spellings, named)
        differing = {
            token: table.spelling_tokens(first) for token, first in enumerate(firsts) if first != spellings[token]
        }
        first_tokens = _TokenTable(tokenizer, firsts, named).make() if differing else None
        return cls(size, table.make(), first_tokens, differing)
