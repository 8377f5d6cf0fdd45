"""Online correction of one request's predicted acceptance: is its text easier or harder than the calibration texts?

After each step the log-odds of a guess move by the accepted tokens minus the expected ones. This is gradient ascent on
the likelihood of what was accepted, one step at a time.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from entmtp.policies.base import BeginDraft, Choice, Policy
from entmtp.policies.policy_cost import PolicyCost
from entmtp.policies.signals import Signals
from entmtp.policies.step_cost import rounded_context, widest
from entmtp.trees.topology import Topology

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


@dataclass(frozen=True)
class StepInputs:
    """Inputs of a step's choice of trees: ``signals``, ``limits`` and ``begin`` as of :meth:`Policy.choose`.

    Attributes:
        biases: updated with what the last step gained.
        context: the requests' mean context in tokens, rounded, at which trees are priced.
    """

    signals: Sequence[Signals]
    biases: Sequence[AcceptanceBias]
    limits: Sequence[int]
    context: int
    begin: BeginDraft


class BiasedPolicy(Policy):
    """Policy that corrects its predictions for each request; the request's state is an :class:`AcceptanceBias`."""

    cost: PolicyCost

    def __init__(self, cost: PolicyCost, entropy_window: int) -> None:
        self.cost = cost
        self.entropy_window = entropy_window
        self._context = 0
        self._expected = 0.0
        self._last: list[Choice] = []

    def start(self) -> AcceptanceBias:
        return AcceptanceBias()

    def choose(
        self, signals: Sequence[Signals], states: Sequence[AcceptanceBias], limits: Sequence[int], begin: BeginDraft
    ) -> list[Choice]:
        for signal, bias in zip(signals, states, strict=True):
            bias.update(signal.gained)
        self._context = rounded_context([signal.context for signal in signals])
        self.cost.start_step(self._context, drafts=any(limits))
        if any(limits):
            self._last = self.choose_trees(StepInputs(signals, states, limits, self._context, begin))
        else:
            self._last = [Choice(Topology.root_only())] * len(signals)
        self._expected = sum(1 + (bias.expected or 0.0) for bias in states)
        return self._last

    @property
    def predicted_goodput(self) -> float | None:
        if not self._last:
            return None
        cost = self.cost.of_batch(len(self._last), self._context)
        return self._expected / cost(widest([choice.topology for choice in self._last]))

    @abstractmethod
    def choose_trees(self, inputs: StepInputs) -> list[Choice]:
        """Choose the trees of a step in which some request's limit is above 0.

        Sets what each request's tree is expected to gain.
        """
