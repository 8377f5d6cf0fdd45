"""Online correction of one request's predicted acceptance: is its text easier or harder than the calibration texts?

After each step the log-odds of a guess move by the accepted tokens minus the expected ones. This is gradient ascent on
the likelihood of what was accepted, one step at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

LEARNING_RATE = 0.02
"""Log-odds per token. In replay, twice or five times as much changes little."""

_MAX_LOG_ODDS = 2.0


@dataclass
class AcceptanceBias:
    """Policy state of one request.

    Attributes:
        log_odds: added to the log-odds that the request's guesses are right.
        expected: tokens that the running step's guesses should gain; None if it guesses nothing.
    """

    log_odds: float = 0.0
    expected: float | None = None

    def update(self, gained: int) -> None:
        """Update the bias with the tokens that the last step gained, root included."""
        if self.expected is not None:
            moved = self.log_odds + LEARNING_RATE * (gained - 1 - self.expected)
            self.log_odds = max(-_MAX_LOG_ODDS, min(_MAX_LOG_ODDS, moved))
        self.expected = None
