"""Time that may be spent on trees which only might be better.

A policy that chooses by what it knows never learns that a size it does not use has become cheap, or was measured too
expensive. So now and then it chooses by what steps may cost at the least (optimism under uncertainty, as UCB, Auer et
al. 2002): a size that is well known gains nothing by that, and one that nobody has tried for long gets its turn.

No such step is worse than the usual choice by more than its time exceeds the optimistic one, for by the optimistic
costs it was at least as good. That excess is what it is charged; what may be charged is a small part of all time.
"""

from __future__ import annotations

SHARE = 0.01
"""Part of all time that probes may cost."""

BURST = 2.0
"""Steps whose time may be spent at once: what a run begins with, and the most that is saved up."""

EVERY = 16
"""Steps between looks for a probe; one follows another at once."""


class ProbeBudget:
    """Account of what probes cost, in milliseconds."""

    def __init__(self) -> None:
        self._credit = 0.0
        self._steps = 0
        self._probed = False

    @property
    def due(self) -> bool:
        """Whether the next step may be a probe."""
        return self._credit > 0 and (self._probed or self._steps % EVERY == 0)

    def spend(self, took_ms: float, excess_ms: float | None) -> None:
        """Takes in a step. ``excess_ms``: by how much a probe took longer than it may at the least; None for others."""
        if not self._steps:
            self._credit = BURST * took_ms
        self._credit = min(self._credit + SHARE * took_ms - (excess_ms or 0.0), BURST * took_ms)
        self._probed = excess_ms is not None
        self._steps += 1
