"""Optimizer of draft heads: AdamW, and Muon (Jordan et al. 2024) for the matrices of heads with layers of their own.

Muon's steps are orthogonal matrices, computed by products in bfloat16. With them such heads learn more from a text.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.optim import AdamW, Muon, Optimizer

from entmtp.settings import TrainingSettings

_MUON_RATE = 2.0
"""Muon's learning rate over AdamW's, when its steps are as large as AdamW's (arXiv 2502.16982, section 2.2)."""


class HeadsOptimizer:
    """Optimizer of ``parameters``, with Muon for those of ``matrices``, which are among them."""

    def __init__(
        self, parameters: Iterable[nn.Parameter], matrices: Iterable[nn.Parameter], settings: TrainingSettings
    ) -> None:
        by_muon = list(matrices)
        chosen = {id(matrix) for matrix in by_muon}
        others = [each for each in parameters if id(each) not in chosen]
        rate, decay = settings.learning_rate, settings.weight_decay
        self._rates = [rate]
        self._optimizers: list[Optimizer] = [AdamW(others, lr=rate, weight_decay=decay)]
        if by_muon:
            self._rates.append(_MUON_RATE * rate)
            self._optimizers.append(
                Muon(by_muon, lr=_MUON_RATE * rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw")
            )

    @property
    def name(self) -> str:
        """Name of the method, for a model card."""
        return " and ".join(type(each).__name__ for each in reversed(self._optimizers))

    def step(self, factor: float) -> None:
        """Moves the parameters by their gradients at ``factor`` times the learning rate, and clears the gradients."""
        for optimizer, rate in zip(self._optimizers, self._rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = factor * rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> list[dict[str, Any]]:
        """State of all optimizers, for a checkpoint."""
        return [optimizer.state_dict() for optimizer in self._optimizers]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """Continue from the state of a checkpoint."""
        for optimizer, state in zip(self._optimizers, states, strict=True):
            optimizer.load_state_dict(state)
