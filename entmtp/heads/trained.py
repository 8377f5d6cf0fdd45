"""Base of the heads that ``entmtp train`` makes: one hidden layer each, added to the scaled decoder state.

Head i: ``scale_i * h + W2_i SiLU(inputs)``, then the model's own output layer. The family defines the inputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from entmtp.heads.configuration import DraftHeadsConfig
from entmtp.heads.linear_weights import LinearWeights
from entmtp.heads.stateless import StatelessHeads
from entmtp.models.kernels.block_weight import embed


@dataclass(kw_only=True)
class TrainedHeadsConfig(DraftHeadsConfig):
    """Configuration of heads that ``entmtp train`` makes; ``inner_size`` is the width of each one's hidden layer."""

    inner_size: int = 736


class TrainedHeads(StatelessHeads):
    """Heads with one hidden layer each.

    Parameters: ``scale [num_heads]``, ``down [num_heads, inner_size, hidden_size]``.
    """

    is_trainable = True
    config_class: type[TrainedHeadsConfig] = TrainedHeadsConfig
    config: TrainedHeadsConfig

    def __init__(self, config: TrainedHeadsConfig) -> None:
        super().__init__(config)
        self.scale = nn.Parameter(torch.ones(config.num_heads))
        self.down = nn.Parameter(torch.zeros(config.num_heads, config.inner_size, config.hidden_size))

    def linear_weights(self) -> dict[str, LinearWeights]:
        return super().linear_weights() | {f"down {head}": (each.t(), None) for head, each in enumerate(self.down)}

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """RMS-normalised input embeddings ``[..., hidden_size]`` of tokens ``[...]``."""
        return rms_norm(embed(self.input_embeddings, tokens))

    def head_state(self, head: int, hidden: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        """States ``[n, hidden_size]`` of a head.

        ``hidden [n, hidden_size]`` are decoder states and ``inputs [n, inner_size]`` its hidden layer's inputs.
        """
        update = self.linear(f"down {head}", nn.functional.silu(inputs))
        return self.scale[head] * hidden + update


def rms_norm(states: torch.Tensor) -> torch.Tensor:
    """Root-mean-square normalisation without a weight."""
    return nn.functional.rms_norm(states, states.shape[-1:], eps=1e-6)
