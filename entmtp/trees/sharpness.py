"""Sharpness of a head's distribution after one node: how sure the head is of its guesses there.

Every kind of heads and every kernel normalises the log-probabilities of its guesses over the whole draft vocabulary. So
the likeliest few tell the sharpness. No second pass over the vocabulary is needed, neither in a step nor in a trace.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, Self

RANKS = 4
"""Likeliest guesses that are read of a distribution, whatever the kind of heads."""

MAX_MARGIN = 10.0
"""Nats. With a larger margin the first guess is certain, and rounding decides how large the margin is."""

_MOST_NATS = 30.0


class Sharpness(NamedTuple):
    """Sharpness of one distribution, in nats.

    Attributes:
        entropy: least entropy that a distribution with these likeliest guesses can have. Their own terms count in full.
            Each other token counts as if it were as likely as the last of them; it is at most that likely.
        margin: log-probability of the first guess minus that of the second, at most :data:`MAX_MARGIN`.
    """

    entropy: float
    margin: float

    @classmethod
    def of(cls, log_probs: Sequence[float]) -> Self:
        """Sharpness of a distribution by the log-probabilities of its guesses, likeliest first.

        Only the first :data:`RANKS` count. There are fewer if the draft vocabulary is smaller.
        """
        # In this order of arguments, a value that is not a number becomes the bound.
        nats = [max(-_MOST_NATS, min(value, 0.0)) for value in log_probs[:RANKS]]
        probabilities = [math.exp(value) for value in nats]
        rest = max(0.0, 1.0 - sum(probabilities))
        known = sum(probability * value for probability, value in zip(probabilities, nats, strict=True))
        margin = nats[0] - nats[1] if len(nats) > 1 else MAX_MARGIN
        return cls(-known - rest * nats[-1], min(margin, MAX_MARGIN))
