"""The heads' own estimates of acceptance, as far as a calibration reads them."""

from __future__ import annotations

from collections.abc import Sequence

from entmtp.heads.interface import Expansion
from entmtp.trees.probability_calibration import ProbabilityCalibration


def estimated_odds(expansion: Expansion, chances: ProbabilityCalibration, parents: int) -> Sequence[float | None]:
    """Log-odds ``[parents]`` that a guess after each parent of the last level is accepted, as the heads estimate.

    None for each parent if the calibration does not read estimates, which are then not computed, or there are none.
    """
    odds = expansion.estimated_odds() if chances.reads_estimates else None
    return [None] * parents if odds is None else odds.tolist()
