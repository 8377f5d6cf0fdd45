"""Calibration of the heads' probabilities: the probability that a drafted token is accepted, given that its parent is.

Heads are overconfident, and each differs. Platt scaling per depth corrects the log-odds of a drafted token. The
probability of a path is then the product of its calibrated probabilities (EAGLE-2, arXiv 2406.16858, section 3,
multiplies the heads' own). How much a head overstates depends on how sure it is, so the coefficients of the scaling may
depend on the sharpness of the distribution that a token comes from (:mod:`entmtp.trees.sharpness`). The output of
deeper heads is unknown before they run, so the mean probability of each rank is used instead. The calibration is fitted
on rank traces (:mod:`entmtp.calibration.fit_chances`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

from entmtp.trees.sharpness import RANKS, Sharpness

_MOST_ODDS = 30.0
_NEARLY_ONE = -math.exp(-_MOST_ODDS)
_LEAST_ODDS = -700.0  # below it the exponential overflows

Coefficient = tuple[FiniteFloat, FiniteFloat, FiniteFloat]
"""A coefficient of the scaling: a constant, what a nat of entropy adds, and what a nat of margin adds."""


class SharpnessScaling(BaseModel):
    """Platt scaling whose coefficients depend on the sharpness of a distribution, per depth 0, 1, ...

    A slope below 0 counts as 0, so that a likelier token of one distribution never has the smaller probability.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    slope: list[Coefficient]
    offset: list[Coefficient]

    def at(self, depth: int, seen: Sharpness) -> tuple[float, float]:
        """Slope and offset for a distribution of this sharpness."""
        slope, offset = (
            constant + by_entropy * seen.entropy + by_margin * seen.margin
            for constant, by_entropy, by_margin in (self.slope[depth], self.offset[depth])
        )
        return max(0.0, slope), offset


class LogLosses(BaseModel):
    """Log-loss on texts that were held out of the fit, in nats per guess, both ways on the same guesses.

    Attributes:
        texts: texts of the calibration, each of which was held out once.
        plain: with the same coefficients for every distribution of a depth.
        sharpness: with coefficients that depend on the sharpness of each distribution.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    texts: int = Field(ge=2)
    plain: FiniteFloat
    sharpness: FiniteFloat


class ProbabilityCalibration(BaseModel):
    """Platt scaling of the drafted tokens, per depth 0, 1, ...

    Attributes:
        slope, offset: coefficients of the calibrated log-odds.
        follow: ``[depth][rank]`` the mean probability that a token of that rank is accepted.
        sharpness: coefficients that replace ``slope`` and ``offset``; None if these predict held-out texts as well, and
            in older banks.
        held_out: the comparison that decided; None if there was one text only, and in older banks.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    slope: list[Annotated[FiniteFloat, Field(ge=0)]] = Field(min_length=1)
    offset: list[FiniteFloat]
    follow: list[Annotated[list[Annotated[FiniteFloat, Field(ge=0, le=1)]], Field(min_length=1)]]
    sharpness: SharpnessScaling | None = None
    held_out: LogLosses | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if not len(self.slope) == len(self.offset) == len(self.follow):
            raise ValueError("every depth needs a slope, an offset and the mean chances of its ranks")
        if self.sharpness and not len(self.sharpness.slope) == len(self.sharpness.offset) == len(self.slope):
            raise ValueError(f"sharpness needs a slope and an offset for each of {len(self.slope)} depths")
        return self

    @property
    def plain(self) -> Self:
        """The same calibration without :attr:`sharpness`."""
        return self.model_copy(update={"sharpness": None})

    @property
    def fewest_guesses(self) -> int:
        """Guesses that must be drafted after a node, for :meth:`probabilities` to be those of the calibration."""
        return 1 if self.sharpness is None else RANKS

    def probabilities(self, depth: int, log_probs: Sequence[float], shift: float = 0.0) -> list[float]:
        """Calibrated probabilities of one node's drafted children at ``depth`` (0 is a child of the root).

        ``log_probs`` are theirs, likeliest first: at least :attr:`fewest_guesses`, or the whole draft vocabulary.
        ``shift`` is added to the calibrated log-odds.
        """
        slope, offset = self.slope[depth], self.offset[depth]
        if self.sharpness is not None:
            slope, offset = self.sharpness.at(depth, Sharpness.of(log_probs))
        return [_logistic(slope * log_odds(log_prob) + offset + shift) for log_prob in log_probs]


def log_odds(log_prob: float) -> float:
    """Bounded log-odds of a probability, which is given by its logarithm."""
    bounded = max(-_MOST_ODDS, min(log_prob, _NEARLY_ONE))
    return bounded - math.log(-math.expm1(bounded))


def _logistic(odds: float) -> float:
    """Probability of these log-odds."""
    return 1 / (1 + math.exp(-max(odds, _LEAST_ODDS)))
