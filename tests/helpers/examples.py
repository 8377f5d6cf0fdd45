"""Numbers of examples in proportion to the profile's, so that a quick run is quick everywhere."""

from __future__ import annotations

from hypothesis import settings


def examples(per_hundred: int) -> int:
    """Number of examples, at least two, of a test of which each costs more or less than the usual one.

    Args:
        per_hundred: number in a profile of 100 examples.
    """
    return max(2, round(per_hundred * settings().max_examples / 100))
