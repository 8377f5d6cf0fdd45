"""What a request's own steps teach about its text: easier or harder than those that predictions were fitted on.

After each step the log-odds of a guess move by what the step gained beyond what was expected of it: gradient ascent on
the likelihood of what was accepted, a step at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

LEARNING_RATE = 0.02
"""Log-odds per token; by replay, twice or five times as much changes little."""

_MOST = 2.0


@dataclass
class Belief:
    """One request's correction; ``shift`` is added to the log-odds that its guesses are right."""

    shift: float = 0.0
    expected: float | None = None
    """Tokens that the running step's guesses should gain; None where it guesses nothing."""

    def learn(self, gained: int) -> None:
        """Takes in what the last step gained, root included."""
        if self.expected is not None:
            moved = self.shift + LEARNING_RATE * (gained - 1 - self.expected)
            self.shift = max(-_MOST, min(_MOST, moved))
        self.expected = None
