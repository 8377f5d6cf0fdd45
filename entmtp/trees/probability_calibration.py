"""How far the heads' own probabilities can be believed: the chance that a guess is right, given that its path is.

Heads are overconfident, each in its own way. A logistic curve per depth corrects the log-odds of a guess, so that a
path's chance is a product of corrected ones (EAGLE-2, arXiv 2406.16858, section 3, multiplies the heads' own). What
deeper heads will say is unknown before they run; the mean chance of each rank stands for it. Fitted on rank traces.
"""

from __future__ import annotations

import math
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

_MOST_ODDS = 30.0
_NEARLY_ONE = -math.exp(-_MOST_ODDS)


class ProbabilityCalibration(BaseModel):
    """Per depth 0, 1, ... of the guess.

    Attributes:
        slope, offset: of the corrected log-odds.
        follow: ``[depth][rank]`` the mean chance of a guess of that rank.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    slope: list[Annotated[FiniteFloat, Field(ge=0)]] = Field(min_length=1)
    offset: list[FiniteFloat]
    follow: list[Annotated[list[Annotated[FiniteFloat, Field(ge=0, le=1)]], Field(min_length=1)]]

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if not len(self.slope) == len(self.offset) == len(self.follow):
            raise ValueError("every depth needs a slope, an offset and the mean chances of its ranks")
        return self

    def probability(self, depth: int, log_prob: float, shift: float = 0.0) -> float:
        """The chance that a guess at ``depth`` (0 is the root's child) with this log-probability is right.

        ``shift`` moves the corrected log-odds.
        """
        odds = self.slope[depth] * log_odds(log_prob) + self.offset[depth] + shift
        return 1 / (1 + math.exp(-odds))


def log_odds(log_prob: float) -> float:
    """Of a probability given by its logarithm, bounded."""
    bounded = max(-_MOST_ODDS, min(log_prob, _NEARLY_ONE))
    return bounded - math.log(-math.expm1(bounded))
