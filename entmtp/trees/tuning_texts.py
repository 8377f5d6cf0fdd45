"""Tuning texts of a bank, from which its ladder of trees is tuned again on another machine.

A text is two lines of JSON, about ten bytes per position: the part of a rank trace that a replay of small trees reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

from entmtp.trees.trace import MISS, RankedText

DIGITS = "0123456789abcdefghijklmnopqrstuv"
"""One digit for each rank that a tree may use (:data:`~entmtp.calibration.optimal.MAX_RANK`)."""

_MISSED = "."
_RANK_OF = {digit: rank for rank, digit in enumerate(DIGITS)} | {_MISSED: MISS}
_PER_NAT = 1000

Words = Annotated[str, Field(pattern=r"^[0-9a-v.]+( [0-9a-v.]+)*$")]
Numbers = Annotated[str, Field(pattern=r"^[0-9]{1,6}( [0-9]{1,6})*$")]


class StoredText(BaseModel):
    """The ranks and entropies of one text, encoded as two strings.

    Attributes:
        ranks: a word per position with a digit in base 32 per head: the true token's rank, or '.' past the last digit.
        entropy: a number per position, in thousandths of a nat.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    ranks: Words
    entropy: Numbers

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        words = self.ranks.split(" ")
        if len({len(word) for word in words}) > 1:
            raise ValueError("every position needs a rank for each head")
        if len(words) != (count := len(self.entropy.split(" "))):
            raise ValueError(f"{len(words)} positions have ranks and {count} an entropy")
        return self

    @classmethod
    def of(cls, text: RankedText) -> Self:
        """Encode ``text``, with entropies rounded to thousandths of a nat."""
        words = ("".join(map(_digit, row)) for row in text.ranks.tolist())
        numbers = (str(max(0, round(nats * _PER_NAT))) for nats in text.entropy.tolist())
        return cls(ranks=" ".join(words), entropy=" ".join(numbers))

    def text(self) -> RankedText:
        """Decode the text for a replay."""
        ranks = [[_RANK_OF[digit] for digit in word] for word in self.ranks.split(" ")]
        nats = [int(number) / _PER_NAT for number in self.entropy.split(" ")]
        return RankedText(torch.tensor(ranks, dtype=torch.int32), torch.tensor(nats))

    @property
    def heads(self) -> int:
        """Number of heads that ranked each token."""
        return len(self.ranks.partition(" ")[0])


class TuningTexts(BaseModel):
    """Texts on which the ladder of a bank is tuned.

    Attributes:
        max_rungs: largest number of entropy bins.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_rungs: int = Field(ge=1, le=8)
    texts: list[StoredText] = Field(min_length=1)

    @model_validator(mode="after")
    def _same_heads(self) -> Self:
        if len({text.heads for text in self.texts}) > 1:
            raise ValueError("all texts must be ranked by the same number of heads")
        return self

    @classmethod
    def of(cls, traces: Sequence[RankedText], max_rungs: int) -> Self:
        """Encode the texts that have at least one position."""
        return cls(max_rungs=max_rungs, texts=[StoredText.of(trace) for trace in traces if len(trace)])

    @property
    def heads(self) -> int:
        """Number of heads that ranked each token."""
        return self.texts[0].heads

    def ranked_texts(self) -> list[RankedText]:
        """The decoded texts, for a replay."""
        return [stored.text() for stored in self.texts]


def _digit(rank: int) -> str:
    return DIGITS[rank] if rank < len(DIGITS) else _MISSED
