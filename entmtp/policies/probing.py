"""Time budget of probes: steps that try a tree size whose cost is uncertain.

A policy never learns that a size it does not use has become cheap, or was measured too expensive. So now and then it
chooses by optimistic costs, the least that steps may cost (optimism under uncertainty, as UCB, Auer et al. 2002). That
changes nothing for a well known size. A size that was not used for long gets its turn.

By the optimistic costs, a probe was at least as good as the usual choice. So it loses at most the time by which it
exceeds its optimistic cost. That excess is charged to the budget, which is a small part of all time.
"""

from __future__ import annotations

SHARE = 0.01
"""Share of all time that probes may cost."""

BURST = 2.0
"""Maximum credit, in steps' time. A run starts with it."""

EVERY = 16
"""Steps between probes; a probe may follow another one immediately."""


class ProbeBudget:
    """Credit account of probes, in milliseconds."""

    def __init__(self) -> None:
        self._credit = 0.0
        self._steps = 0
        self._probed = False

    @property
    def due(self) -> bool:
        """Whether the next step may be a probe."""
        return self._credit > 0 and (self._probed or self._steps % EVERY == 0)

    def spend(self, took_ms: float, excess_ms: float | None) -> None:
        """Account for a step. ``excess_ms``: a probe's time above its optimistic cost; None for other steps."""
        if not self._steps:
            self._credit = BURST * took_ms
        self._credit = min(self._credit + SHARE * took_ms - (excess_ms or 0.0), BURST * took_ms)
        self._probed = excess_ms is not None
        self._steps += 1
