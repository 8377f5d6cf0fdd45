"""Upper envelope of piecewise linear functions, computed once so that a step only has to look it up."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np


@dataclass(frozen=True)
class Envelope:
    """Indices of the highest line: ``lines[0]`` up to ``breaks[0]``, ``lines[1]`` from there to ``breaks[1]``, ..."""

    breaks: list[float]
    lines: list[int]

    def at(self, x: float) -> int:
        """Index of the highest line at ``x``."""
        return self.lines[bisect_left(self.breaks, x)]


def upper_envelope(corners: Sequence[float], heights: np.ndarray) -> Envelope:
    """Envelope of lines with ``heights [corners, lines]``, linear between ``corners [corners]``, constant outside."""
    found = Envelope([], [int(heights[0].argmax())])
    for (begin, end), (left, right) in zip(pairwise(corners), pairwise(heights), strict=True):
        part = 0.0
        while True:
            highest = found.lines[-1]
            rise = (right - left) - (right - left)[highest]
            meets = np.full(len(rise), np.inf)
            np.divide(left[highest] - left, rise, out=meets, where=rise > 0)
            part = max(part, float(meets.min()))
            if part >= 1:
                break
            found.breaks.append(begin + part * (end - begin))
            # Of those that cross it here, the steepest is the highest after this point.
            found.lines.append(int(np.where(meets <= part, rise, -np.inf).argmax()))
    return found
