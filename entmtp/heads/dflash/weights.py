"""Weights of DFlash and DSpark heads. :mod:`entmtp.heads.dflash.heads` has the formulas.

Matrices that multiply the same states are stored one below the other, so that each product is one call.
"""

from __future__ import annotations

import torch
from torch import nn

from entmtp.heads.dflash.configuration import DFlashConfig
from entmtp.heads.linear_weights import LinearWeights


class DFlashLayerWeights(nn.Module):
    """Weights of one decoder layer. Keys and values are apart from queries, which the text has none of."""

    def __init__(self, config: DFlashConfig) -> None:
        super().__init__()
        hidden, queries = config.hidden_size, config.num_attention_heads * config.head_dim
        keys_values = 2 * config.num_key_value_heads * config.head_dim
        self.queries = nn.Linear(hidden, queries, bias=False)
        self.keys_values = nn.Linear(hidden, keys_values, bias=False)
        self.attention_output = nn.Linear(queries, hidden, bias=False)
        self.gate_up = nn.Linear(hidden, 2 * config.intermediate_size, bias=False)
        self.down = nn.Linear(config.intermediate_size, hidden, bias=False)
        self.input_norm, self.mlp_norm = _norm(hidden), _norm(hidden)
        self.query_norm, self.key_norm = _norm(config.head_dim), _norm(config.head_dim)

    def linear_weights(self) -> dict[str, LinearWeights]:
        """Weights of the linear layers by name."""
        named = {
            "queries": self.queries,
            "keys values": self.keys_values,
            "attention output": self.attention_output,
            "gate up": self.gate_up,
            "down": self.down,
        }
        return {name: (each.weight, None) for name, each in named.items()}


class DFlashWeights(nn.Module):
    """All weights of DFlash heads.

    Parameters: ``fc [hidden_size, features * hidden_size]``, ``context_norm`` and ``norm [hidden_size]``, and the
    layers'. By the configuration also these, which are None otherwise:

    - ``embeddings [vocab_size, hidden_size]`` and ``output [draft_vocab_size, hidden_size]``;
    - ``markov_tokens [vocab_size, markov_rank]`` and ``markov_output [draft_vocab_size, markov_rank]``;
    - ``confidence [1, hidden_size]``, or ``[1, hidden_size + markov_rank]``, and ``confidence_bias [1]``.
    """

    def __init__(self, config: DFlashConfig) -> None:
        super().__init__()
        hidden, rank = config.hidden_size, config.markov_rank
        self.fc = nn.Parameter(torch.zeros(hidden, len(config.feature_layers) * hidden))
        self.context_norm, self.norm = _norm(hidden), _norm(hidden)
        self.layers = nn.ModuleList(DFlashLayerWeights(config) for _ in range(config.num_layers))
        self.embeddings = _matrix(config.vocab_size, hidden, config.own_embeddings)
        self.output = _matrix(config.draft_vocab_size, hidden, config.own_output)
        self.markov_tokens = _matrix(config.vocab_size, rank, bool(rank))
        self.markov_output = _matrix(config.draft_vocab_size, rank, bool(rank))
        read = hidden + rank if config.confidence_reads_token else hidden
        self.confidence = _matrix(1, read, config.has_confidence)
        self.confidence_bias = nn.Parameter(torch.zeros(1)) if config.has_confidence else None

    def layer(self, number: int) -> DFlashLayerWeights:
        """Weights of a decoder layer."""
        layer = self.layers[number]
        assert isinstance(layer, DFlashLayerWeights)
        return layer

    def linear_weights(self) -> dict[str, LinearWeights]:
        """Weights of the linear layers by name; those of layer i begin with ``i``."""
        weights: dict[str, LinearWeights] = {"fc": (self.fc, None)}
        for number in range(len(self.layers)):
            weights |= {f"{number} {name}": each for name, each in self.layer(number).linear_weights().items()}
        for name, matrix in (("output", self.output), ("markov", self.markov_output)):
            if matrix is not None:
                weights[name] = matrix, None
        return weights


def _norm(size: int) -> nn.Parameter:
    return nn.Parameter(torch.ones(size))


def _matrix(rows: int, columns: int, exists: bool) -> nn.Parameter | None:
    return nn.Parameter(torch.zeros(rows, columns)) if exists else None
