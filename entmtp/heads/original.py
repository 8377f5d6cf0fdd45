"""Base of published heads: residual blocks ``x + SiLU(W x + b)``, usually with an output layer for each head.

The formula is that of the Medusa authors' code (github.com/FasterDecoding/Medusa), which Hydra's, TGI's and vLLM's
follow: no normalisation, biases in the blocks, guesses within the whole vocabulary. An output layer of
their own has ``draft_vocab_size * hidden_size`` weights: for Vicuna-7B's five Medusa heads, 1.3 of 1.5 GB in 16 bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from entmtp.heads.configuration import DraftHeadsConfig
from entmtp.heads.linear_weights import LinearWeights
from entmtp.heads.stateless import StatelessHeads
from entmtp.models.kernels.block_weight import Weight


@dataclass(kw_only=True)
class OriginalHeadsConfig(DraftHeadsConfig):
    """Configuration of imported heads.

    Attributes:
        num_layers: residual blocks of each head.
        outputs: number of their own output layers: ``num_heads``, 1 for all heads, or 0 to use the model's.
        output_bias: whether their own output layers have a bias.
    """

    num_layers: int = 1
    outputs: int = 0
    output_bias: bool = False

    @property
    def square_blocks(self) -> int:
        """Number of blocks of each head with as many inputs as outputs."""
        return self.num_layers


class OriginalHeads(StatelessHeads):
    """Residual blocks and output layers.

    Parameters: ``block_weight [num_heads, square_blocks, hidden_size, hidden_size]``, ``block_bias [num_heads,
    square_blocks, hidden_size]``. Output layers of their own add ``own_weight [outputs, draft_vocab_size,
    hidden_size]`` and, with a bias, ``own_bias [outputs, draft_vocab_size]``.
    """

    config_class: type[OriginalHeadsConfig] = OriginalHeadsConfig
    config: OriginalHeadsConfig

    def __init__(self, config: OriginalHeadsConfig) -> None:
        super().__init__(config)
        heads, hidden, vocab = config.num_heads, config.hidden_size, config.draft_vocab_size
        blocks = config.square_blocks
        self.block_weight = nn.Parameter(torch.zeros(heads, blocks, hidden, hidden))
        self.block_bias = nn.Parameter(torch.zeros(heads, blocks, hidden))
        self.own_weight = nn.Parameter(torch.zeros(config.outputs, vocab, hidden)) if config.outputs else None
        biased = config.outputs and config.output_bias
        self.own_bias = nn.Parameter(torch.zeros(config.outputs, vocab)) if biased else None

    def linear_weights(self) -> dict[str, LinearWeights]:
        blocks: dict[str, LinearWeights] = {
            f"block {head} {block}": (self.block_weight[head, block], self.block_bias[head, block])
            for head in range(self.num_heads)
            for block in range(self.block_weight.shape[1])
        }
        if self.own_weight is None:
            return super().linear_weights() | blocks
        for output, weight in enumerate(self.own_weight):
            blocks[f"output {output}"] = weight, None if self.own_bias is None else self.own_bias[output]
        return blocks

    def residual(self, head: int, states: torch.Tensor) -> torch.Tensor:
        """Runs ``states [n, hidden_size]`` through a head's blocks."""
        for block in range(self.block_weight.shape[1]):
            states = states + nn.functional.silu(self.linear(f"block {head} {block}", states))
        return states

    def bind_output(self, layer: Any) -> None:
        if self.own_weight is None:
            super().bind_output(layer)

    @property
    def output_layers(self) -> Sequence[Weight]:
        return super().output_layers if self.own_weight is None else list(self.own_weight)

    def draft_logits(self, states: torch.Tensor, head: int | None = None) -> torch.Tensor:
        if self.own_weight is None:
            return super().draft_logits(states, head)
        if len(self.own_weight) == 1:
            return self.linear("output 0", states)
        if head is not None:
            return self.linear(f"output {head}", states)
        logits = [self.linear(f"output {number}", each) for number, each in enumerate(states.unbind(-2))]
        return torch.stack(logits, dim=-2)
