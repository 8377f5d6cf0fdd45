"""Rotary positions of draft heads' own decoder layers."""

from __future__ import annotations

import torch

from entmtp.errors import EntMTPError, quoted
from entmtp.heads.decoder_config import DecoderHeadsConfig
from entmtp.models.bare_config import BareConfig
from entmtp.models.rotary_embedding import RotaryEmbedding

Rotations = tuple[torch.Tensor, torch.Tensor]
"""Cosines and sines of the tokens' positions, each ``[batch, 1, n, head_dim]``."""


def rotary_embedding(config: DecoderHeadsConfig) -> RotaryEmbedding:
    """Rotary embedding in float32: in 16 bits the frequencies would be too coarse at high positions.

    Raises:
        EntMTPError: if its parameters are unusable.
    """
    like_a_llama = BareConfig(
        model_type="llama",
        vocab_size=config.vocab_size,
        hidden_size=config.width,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        max_position_embeddings=config.max_position_embeddings,
        rms_norm_eps=config.rms_norm_eps,
        rope_parameters=config.rope_parameters,
        tie_word_embeddings=False,
        attention_bias=False,
    )
    try:
        return RotaryEmbedding(like_a_llama)
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise EntMTPError(
            f"heads: rope_parameters {quoted(config.rope_parameters)} can't be used ({reason}); import the heads again"
        ) from error


def rotations_at(rotary: RotaryEmbedding, states: torch.Tensor, positions: torch.Tensor) -> Rotations:
    """Rotations of ``positions [batch, n]`` in the type of ``states``, for all heads of a layer."""
    cosines, sines = rotary(states, positions)
    return cosines[:, None], sines[:, None]


def rotated(states: torch.Tensor, rotations: Rotations) -> torch.Tensor:
    """States ``[batch, heads, n, head_dim]`` with the pairs (i, i + head_dim / 2) turned by their positions."""
    cosines, sines = rotations
    first, second = states.chunk(2, dim=-1)
    return states * cosines + torch.cat([-second, first], dim=-1) * sines
