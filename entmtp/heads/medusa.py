"""Medusa heads (arXiv 2401.10774, section 2.1.1): every head guesses from the same decoder state, independently.

Head i: ``scale_i * h + W2_i SiLU(W1_i rmsnorm(h))``, then the model's output layer on the draft vocabulary.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from entmtp.heads.independent import IndependentHeads
from entmtp.heads.linear_weights import LinearWeights
from entmtp.heads.registry import register_heads
from entmtp.heads.trained import TrainedHeads, TrainedHeadsConfig, rms_norm


class MedusaConfig(TrainedHeadsConfig):
    """Configuration of Medusa heads."""

    model_type: ClassVar[str] = "entmtp_medusa"


@register_heads
class MedusaHeads(IndependentHeads, TrainedHeads):
    """Independent heads with their hidden layers' inputs in one matrix product."""

    config_class = MedusaConfig

    def __init__(self, config: MedusaConfig) -> None:
        super().__init__(config)
        heads, inner, hidden = config.num_heads, config.inner_size, config.hidden_size
        self.up = nn.Linear(hidden, heads * inner, bias=False)

    def linear_weights(self) -> dict[str, LinearWeights]:
        return super().linear_weights() | {"up": (self.up.weight, None)}

    def head_states(self, hidden: torch.Tensor, heads: int) -> torch.Tensor:
        inner = self.config.inner_size
        inputs = self.linear("up", rms_norm(hidden), heads * inner).unflatten(-1, (heads, inner))
        return torch.stack([self.head_state(head, hidden, inputs[:, head]) for head in range(heads)], dim=1)
