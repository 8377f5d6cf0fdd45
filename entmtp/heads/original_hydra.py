"""Published Hydra heads (arXiv 2402.05109, section 3): MLPs over a path's concatenated embeddings.

Head i receives ``x = [h; e_0; ...; e_i]``: the decoder state and the model's input embeddings of the path's tokens, of
which ``e_0`` is the root's. Its first block projects that to ``R_i x + r_i + SiLU(W_i x + b_i)``. The other blocks are
square, and its own output layer follows.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn

from entmtp.heads.linear_weights import LinearWeights
from entmtp.heads.original import OriginalHeads, OriginalHeadsConfig
from entmtp.heads.registry import register_heads
from entmtp.heads.sequential import SequentialHeads
from entmtp.models.kernels.block_weight import embed


class OriginalHydraConfig(OriginalHeadsConfig):
    """Configuration of imported Hydra heads; ``num_layers`` includes the first block."""

    model_type: ClassVar[str] = "entmtp_published_hydra"

    @property
    def square_blocks(self) -> int:
        return self.num_layers - 1


@register_heads
class OriginalHydraHeads(SequentialHeads, OriginalHeads):
    """Sequential heads with a projecting first block.

    Parameters: ``first.{i}.weight [2 * hidden_size, (i + 2) * hidden_size]`` and ``first.{i}.bias``: ``R_i`` above
    ``W_i``, so that both take one matrix product.
    """

    config_class = OriginalHydraConfig

    def __init__(self, config: OriginalHydraConfig) -> None:
        super().__init__(config)
        hidden = config.hidden_size
        self.first = nn.ModuleList(nn.Linear((head + 2) * hidden, 2 * hidden) for head in range(config.num_heads))

    def linear_weights(self) -> dict[str, LinearWeights]:
        first: Any = self.first
        return super().linear_weights() | {f"first {head}": (each.weight, each.bias) for head, each in enumerate(first)}

    def path_inputs(
        self, hidden: torch.Tensor, tokens: torch.Tensor, level: int, depth: int, prefix_state: torch.Tensor | None
    ) -> torch.Tensor:
        """Decoder states and embeddings ``[paths, (level + 2) * hidden_size]``, concatenated."""
        embedded = embed(self.input_embeddings, tokens)
        return torch.cat([hidden if prefix_state is None else prefix_state, embedded], dim=-1)

    def path_states(self, hidden: torch.Tensor, level: int, inputs: torch.Tensor) -> torch.Tensor:
        skip, inner = self.linear(f"first {level}", inputs).chunk(2, dim=-1)
        return self.residual(level, skip + nn.functional.silu(inner))
