"""Precision of the compiled products with GGUF's blocks."""

from __future__ import annotations

import torch

from entmtp.models.kernels.fused_linear import FusedLinear
from tests.helpers.gguf_files import random_blocks


def assert_precise(name: str) -> None:
    """Products with blocks of a format are no further from the exact ones than chains of float32's operations are.

    Inputs are of one size, or some are a thousand times as large as the others of their block, or their sizes differ by
    orders of magnitude.
    """
    generator = torch.Generator().manual_seed(0)
    plain, noise = torch.randn(2, 12, 512, generator=generator)
    inputs = {
        "one size": plain,
        "outliers": torch.where(noise > 2, 1000 * plain, plain),
        "many": plain * (2 * noise).exp(),
    }
    weight = random_blocks(name, 70, 512, seed=0)
    values = weight.dequantized()
    for kind, states in inputs.items():
        exact = states.double() @ values.double().T
        error, of_a_chain = (
            (FusedLinear(each, None)(states) - exact).square().mean().sqrt().item() for each in (weight, values)
        )
        assert error <= of_a_chain, (name, kind)
