"""Words that an answer must not contain (vLLM's ``bad_words``): the last token of one never follows the others."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from tokenizers import Tokenizer

Word = tuple[int, ...]
"""Token ids of a word."""


def word_tokens(tokenizer: Tokenizer, words: Sequence[str]) -> list[Word]:
    """Token ids of ``words``, each at the beginning of a text and after a space, which may be other tokens."""
    spellings = [text for word in words for text in (word, f" {word.lstrip()}")]
    found = [tuple(tokenizer.encode(text, add_special_tokens=False).ids) for text in spellings]
    return [word for word in dict.fromkeys(found) if word]


def forbid(logits: torch.Tensor, words: Sequence[Word], texts: Sequence[Sequence[int]]) -> torch.Tensor:
    """Mask in ``logits [n, vocab_size]`` the tokens that complete a word after the answer so far, ``texts[row]``."""
    forbidden = torch.zeros_like(logits, dtype=torch.bool)
    for word in words:
        prefix, last = word[:-1], word[-1]
        rows = [row for row, text in enumerate(texts) if not prefix or tuple(text[-len(prefix) :]) == prefix]
        forbidden[rows, last] = True
    return logits.masked_fill(forbidden, -math.inf)
