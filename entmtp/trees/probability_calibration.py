"""Calibration of the heads' probabilities: the probability that a drafted token is accepted, given that its parent is.

Heads are overconfident, and each differs. Platt scaling per depth corrects the log-odds of a drafted token. The
probability of a path is then the product of its calibrated probabilities (EAGLE-2, arXiv 2406.16858, section 3,
multiplies the heads' own). The output of deeper heads is unknown before they run, so the mean probability of each rank
is used instead. The calibration is fitted on rank traces (:mod:`entmtp.calibration.fit`).
"""

from __future__ import annotations

import math
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

_MOST_ODDS = 30.0
_NEARLY_ONE = -math.exp(-_MOST_ODDS)


class ProbabilityCalibration(BaseModel):
    """Platt scaling of the drafted tokens, per depth 0, 1, ...

    Attributes:
        slope, offset: coefficients of the calibrated log-odds.
        follow: ``[depth][rank]`` the mean probability that a token of that rank is accepted.
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
        """Calibrated probability of a drafted token at ``depth`` (0 is a child of the root), given its log-probability.

        ``shift`` is added to the calibrated log-odds.
        """
        odds = self.slope[depth] * log_odds(log_prob) + self.offset[depth] + shift
        return 1 / (1 + math.exp(-odds))


def log_odds(log_prob: float) -> float:
    """Bounded log-odds of a probability, which is given by its logarithm."""
    bounded = max(-_MOST_ODDS, min(log_prob, _NEARLY_ONE))
    return bounded - math.log(-math.expm1(bounded))
