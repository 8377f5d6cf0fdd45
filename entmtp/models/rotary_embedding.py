"""Rotary position embedding of a model without transformers' code."""

from __future__ import annotations

import torch
from torch import nn

from entmtp.models.bare_config import BareConfig, transformers_config


class RotaryEmbedding(nn.Module):
    """Cosines and sines of positions, with the bits of transformers' module.

    Attributes:
        rope_type: transformers' name of the type.
        factors: divisors ``[head_dim / 2]`` of the frequencies, where a file has such.
        inv_freq: the frequencies ``[head_dim / 2]``.
        attention_scaling: factor of cosines and sines.
    """

    inv_freq: torch.Tensor

    def __init__(self, config: BareConfig, factors: torch.Tensor | None = None) -> None:
        super().__init__()
        self.rope_type: str = config.rope_parameters["rope_type"]
        self.factors = factors
        frequencies, self.attention_scaling = _frequencies(config)
        self.register_buffer("inv_freq", frequencies if factors is None else frequencies / factors, persistent=False)

    def forward(self, states: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines, each ``[batch, n, head_dim]`` in the type of ``states``, of ``positions [batch, n]``."""
        angles = positions[..., None].float() * self.inv_freq
        both = torch.cat((angles, angles), dim=-1)
        cosines, sines = both.cos() * self.attention_scaling, both.sin() * self.attention_scaling
        return cosines.to(states.dtype), sines.to(states.dtype)


def _frequencies(config: BareConfig) -> tuple[torch.Tensor, float]:
    """Frequencies ``[head_dim / 2]`` and the factor of cosines and sines."""
    if config.rope_parameters["rope_type"] == "default":
        exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float) / config.head_dim
        return 1.0 / (config.rope_parameters["rope_theta"] ** exponents), 1.0
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaled = ROPE_INIT_FUNCTIONS[config.rope_parameters["rope_type"]]
    found: tuple[torch.Tensor, float] = scaled(transformers_config(config))
    return found
