"""Weights of EAGLE-3 heads. :mod:`entmtp.heads.eagle3.layers` has the formulas.

Matrices that multiply the same states are stored one below the other, so that each product is one call.
"""

from __future__ import annotations

import torch
from torch import nn

from entmtp.heads.eagle3.configuration import Eagle3Config
from entmtp.heads.linear_weights import LinearWeights


class Eagle3LayerWeights(nn.Module):
    """Weights of one decoder layer; the first receives embedding and state side by side.

    Norms' weights are None where the layer has no such norm.
    """

    def __init__(self, config: Eagle3Config, *, is_first: bool) -> None:
        super().__init__()
        hidden, heads = config.draft_hidden_size, config.num_attention_heads * config.head_dim
        both = heads + 2 * config.num_key_value_heads * config.head_dim
        self.qkv = nn.Linear(2 * hidden if is_first else hidden, both, bias=config.attention_bias)
        self.attention_output = nn.Linear(heads, hidden, bias=config.attention_output_bias)
        self.gate_up = nn.Linear(hidden, 2 * config.intermediate_size, bias=False)
        self.down = nn.Linear(config.intermediate_size, hidden, bias=False)
        self.input_norm = _norm(hidden)
        self.hidden_norm = _norm(hidden) if is_first else None
        self.mlp_norm = _norm(hidden)
        self.query_norm = _norm(config.head_dim) if config.norms_heads else None
        self.key_norm = _norm(config.head_dim) if config.norms_heads else None

    def linear_weights(self) -> dict[str, LinearWeights]:
        """Weights of the linear layers by name."""
        named = {
            "qkv": self.qkv,
            "attention output": self.attention_output,
            "gate up": self.gate_up,
            "down": self.down,
        }
        return {name: (each.weight, each.bias) for name, each in named.items()}


class Eagle3Weights(nn.Module):
    """All weights of EAGLE-3 heads.

    Parameters: ``fc [draft_hidden_size, num_features * hidden_size]``, ``norm [draft_hidden_size]``, and the layers'.
    By the configuration also ``features_norm [num_features * hidden_size]``, ``embeddings [vocab_size,
    draft_hidden_size]`` and ``output [draft_vocab_size, draft_hidden_size]``, which are None otherwise.
    """

    def __init__(self, config: Eagle3Config) -> None:
        super().__init__()
        hidden, width = config.draft_hidden_size, config.num_features * config.hidden_size
        self.fc = nn.Parameter(torch.zeros(hidden, width))
        self.features_norm = _norm(width) if config.norm_before_fc or config.fc_norm else None
        self.layers = nn.ModuleList(
            Eagle3LayerWeights(config, is_first=layer == 0) for layer in range(config.num_layers)
        )
        self.norm = _norm(hidden)
        self.embeddings = nn.Parameter(torch.zeros(config.vocab_size, hidden)) if config.own_embeddings else None
        self.output = nn.Parameter(torch.zeros(config.draft_vocab_size, hidden)) if config.own_output else None

    def layer(self, number: int) -> Eagle3LayerWeights:
        """Weights of a decoder layer."""
        layer = self.layers[number]
        assert isinstance(layer, Eagle3LayerWeights)
        return layer

    def linear_weights(self) -> dict[str, LinearWeights]:
        """Weights of the linear layers by name; those of layer i begin with ``i``."""
        weights: dict[str, LinearWeights] = {"fc": (self.fc, None)}
        for number in range(len(self.layers)):
            weights |= {f"{number} {name}": each for name, each in self.layer(number).linear_weights().items()}
        return weights if self.output is None else weights | {"output": (self.output, None)}


def _norm(size: int) -> nn.Parameter:
    return nn.Parameter(torch.ones(size))
