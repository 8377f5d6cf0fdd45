"""Signals that policies choose by: the entropy of the root's distribution, and averages over a request's steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from entmtp.trees.predictor import Feature


class Ema:
    """Bias-corrected exponential moving average with a window of ``window`` steps: ``beta = 1 - 1 / window``."""

    def __init__(self, window: int) -> None:
        self.beta = 1 - 1 / window
        self._sum = 0.0
        self._weight = 0.0

    def update(self, value: float) -> float:
        """Add a value and return the average."""
        self._sum, self._weight = self._with(value)
        return self.value

    def peek(self, value: float) -> float:
        """Return the average as it would be with one more value."""
        total, weight = self._with(value)
        return total / weight

    def _with(self, value: float) -> tuple[float, float]:
        # The weight is 1 - beta^t without ever computing the power.
        return self.beta * self._sum + (1 - self.beta) * value, self.beta * self._weight + (1 - self.beta)

    @property
    def value(self) -> float:
        """The average; 0 before the first value."""
        return self._sum / self._weight if self._weight else 0.0


def entropy(logits: torch.Tensor) -> torch.Tensor:
    """Entropy in nats ``[...]`` of the next-token distributions ``logits [..., vocab_size]``, in float32."""
    log_probs = logits.float().log_softmax(-1)
    return -(log_probs.exp() * log_probs).sum(-1)


@dataclass(frozen=True)
class Signals:
    """Signals of one request at the start of a step.

    Attributes:
        position: tokens generated before this step, the root not counted.
        entropy: entropy in nats of the distribution that the root was chosen from.
        entropy_ema: its moving average over the starts of steps.
        accepted_ema: moving average of tokens gained per step, root included.
        gained: tokens that the last step gained, root included; 0 before the first.
        confidence: log-probability of the heads' first guess at this step, once they have run; else 0.
        context: tokens in the request's cache before this step, prompt included; 0 if a text is replayed without its
            prompt.
    """

    position: int
    entropy: float
    entropy_ema: float
    accepted_ema: float
    gained: int = 0
    confidence: float = 0.0
    context: int = 0

    def values(self, features: Sequence[Feature]) -> list[float]:
        """Values of a predictor's input ``[features]``."""
        return [getattr(self, feature) for feature in features]


class SignalTracker:
    """Moving averages of one request."""

    def __init__(self, window: int) -> None:
        self._entropy = Ema(window)
        self._accepted = Ema(window)
        self._entropy_now = 0.0
        self._gained = 0

    def start_step(self, position: int, entropy_now: float, context: int = 0) -> Signals:
        """Return the signals of a step whose root was chosen at ``entropy_now`` nats; :meth:`end_step` records them."""
        self._entropy_now = entropy_now
        smoothed = self._entropy.peek(entropy_now)
        return Signals(position, entropy_now, smoothed, self._accepted.value, self._gained, context=context)

    def end_step(self, gained: int) -> None:
        """Record how many tokens the step gained, root included."""
        self._gained = gained
        self._entropy.update(self._entropy_now)
        self._accepted.update(gained)
