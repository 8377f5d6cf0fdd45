"""Calibration of the heads' probabilities: the probability that a drafted token is accepted, given that its parent is.

Heads are overconfident, and each differs. Platt scaling per depth corrects the log-odds of a drafted token. The
probability of a path is then the product of its calibrated probabilities (EAGLE-2, arXiv 2406.16858, section 3,
multiplies the heads' own). How much a head overstates depends on how sure it is. So the offset of the scaling may
depend on the sharpness of the distribution that a token comes from (:mod:`entmtp.trees.sharpness`). Some heads also
estimate themselves whether a guess after a node is accepted, as DSpark's do (arXiv 2607.05147). The offset may depend
on the log-odds of that estimate too. The output of deeper heads is unknown before they run, so the mean probability of
each rank is used instead. The calibration is fitted on rank traces (:mod:`entmtp.calibration.fit_chances`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

from entmtp.errors import EntMTPError
from entmtp.trees.sharpness import RANKS, Sharpness

MAX_ESTIMATED_ODDS = 10.0
"""Bound of the log-odds that heads estimate. Beyond it the estimate is certain, and how certain tells nothing."""

_MOST_ODDS = 30.0
_NEARLY_ONE = -math.exp(-_MOST_ODDS)
_LEAST_ODDS = -700.0  # below it the exponential overflows

NotNegative = Annotated[FiniteFloat, Field(ge=0)]

Candidate = Literal["plain", "sharpness", "estimated_odds"]
"""A calibration by what its offset depends on, the simplest first. Each also depends on what those before it do."""


class SharpnessScaling(BaseModel):
    """Platt scaling that also reads the sharpness of a distribution, per depth 0, 1, ...

    All guesses of one distribution move together, so a likelier one never has the smaller probability.

    Attributes:
        slope, offset: coefficients of the calibrated log-odds.
        entropy, margin: log-odds that a nat of a distribution's entropy and of its margin adds.
        estimated_odds: log-odds that the heads' own estimate adds, per unit of its bounded log-odds; None if the offset
            does not depend on it, and in older banks.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    slope: list[NotNegative]
    offset: list[FiniteFloat]
    entropy: list[FiniteFloat]
    margin: list[FiniteFloat]
    estimated_odds: list[FiniteFloat] | None = None

    def at(self, depth: int, seen: Sharpness, estimated_odds: float | None) -> tuple[float, float]:
        """Slope and offset for a distribution of this sharpness, with this estimate of the heads.

        Raises:
            EntMTPError: if the offset depends on the estimate and there is none.
        """
        by_sharpness = self.entropy[depth] * seen.entropy + self.margin[depth] * seen.margin
        offset = self.offset[depth] + by_sharpness
        if self.estimated_odds is not None:
            if estimated_odds is None:
                raise no_estimates()
            offset += self.estimated_odds[depth] * bounded_odds(estimated_odds)
        return self.slope[depth], offset


class LogLosses(BaseModel):
    """Log-loss on texts that were held out of the fit, in nats per guess, of each candidate on the same guesses.

    Attributes:
        texts: texts of the calibration, each of which was held out once.
        plain: with the same offset for every distribution of a depth.
        sharpness: with an offset that depends on the sharpness of each distribution.
        estimated_odds: with an offset that depends on the heads' own estimate too; None if they have none, and in older
            banks.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    texts: int = Field(ge=2)
    plain: FiniteFloat
    sharpness: FiniteFloat
    estimated_odds: FiniteFloat | None = None

    @property
    def best(self) -> Candidate:
        """The candidate with the smallest loss; among equals the simplest."""
        losses: dict[Candidate, float] = {"plain": self.plain, "sharpness": self.sharpness}
        if self.estimated_odds is not None:
            losses["estimated_odds"] = self.estimated_odds
        return min(losses, key=losses.__getitem__)


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

    slope: list[NotNegative] = Field(min_length=1)
    offset: list[FiniteFloat]
    follow: list[Annotated[list[Annotated[FiniteFloat, Field(ge=0, le=1)]], Field(min_length=1)]]
    sharpness: SharpnessScaling | None = None
    held_out: LogLosses | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if not len(self.slope) == len(self.offset) == len(self.follow):
            raise ValueError("every depth needs a slope, an offset and the mean chances of its ranks")
        if self.sharpness and {len(each) for _, each in self.sharpness if each is not None} != {len(self.slope)}:
            raise ValueError(f"sharpness needs every coefficient for each of {len(self.slope)} depths")
        return self

    @property
    def plain(self) -> Self:
        """The same calibration without :attr:`sharpness`."""
        return self.model_copy(update={"sharpness": None})

    @property
    def fewest_guesses(self) -> int:
        """Guesses that must be drafted after a node, for :meth:`probabilities` to be those of the calibration."""
        return 1 if self.sharpness is None else RANKS

    @property
    def reads_estimates(self) -> bool:
        """Whether :meth:`probabilities` needs the heads' own estimate."""
        return self.sharpness is not None and self.sharpness.estimated_odds is not None

    def probabilities(
        self, depth: int, log_probs: Sequence[float], shift: float = 0.0, estimated_odds: float | None = None
    ) -> list[float]:
        """Calibrated probabilities of one node's drafted children at ``depth`` (0 is a child of the root).

        ``log_probs`` are theirs, likeliest first: at least :attr:`fewest_guesses`, or the whole draft vocabulary.
        ``shift`` is added to the calibrated log-odds. ``estimated_odds`` is the heads' own estimate at the node.

        Raises:
            EntMTPError: if the calibration reads estimates and there is none.
        """
        slope, offset = self.slope[depth], self.offset[depth]
        if self.sharpness is not None:
            slope, offset = self.sharpness.at(depth, Sharpness.of(log_probs), estimated_odds)
        return [_logistic(slope * log_odds(log_prob) + offset + shift) for log_prob in log_probs]


def log_odds(log_prob: float) -> float:
    """Bounded log-odds of a probability, which is given by its logarithm."""
    bounded = max(-_MOST_ODDS, min(log_prob, _NEARLY_ONE))
    return bounded - math.log(-math.expm1(bounded))


def bounded_odds(estimated: float) -> float:
    """Log-odds that heads estimated, within :data:`MAX_ESTIMATED_ODDS` of zero."""
    # In this order of arguments, a value that is not a number becomes a bound.
    return max(-MAX_ESTIMATED_ODDS, min(estimated, MAX_ESTIMATED_ODDS))


def no_estimates() -> EntMTPError:
    """Error of a calibration that reads estimates, with heads that have none."""
    return EntMTPError(
        "bank: chances.sharpness.estimated_odds is set but these heads don't estimate their own acceptance; use a bank"
        " made with these heads, or make one with 'entmtp calibrate'"
    )


def _logistic(odds: float) -> float:
    """Probability of these log-odds."""
    return 1 / (1 + math.exp(-max(odds, _LEAST_ODDS)))
