"""Linear layers that read their weights at memory bandwidth, with the products of packed_product.hpp."""

from __future__ import annotations

from ctypes import byref

import torch

from entmtp.models.kernels.block_weight import Weight
from entmtp.models.kernels.compiled import library, profiled
from entmtp.models.kernels.draft_weight import draft_weight
from entmtp.models.kernels.packed_linear import InferenceLinear
from entmtp.models.kernels.packed_weight import PackedWeight, pack


class CompiledLinear(InferenceLinear):
    """A linear layer on float32 states with a packed weight.

    Attributes:
        matrix: the weight's address and shape, for the kernels.
        digits: digits of 8 bits to which states are rounded where the weight is in blocks; 0 is as precise as float32.
    """

    digits = 0

    def __init__(self, packed: PackedWeight, width: int, bias: torch.Tensor | None) -> None:
        super().__init__(None if bias is None else bias.detach().contiguous())
        self._packed, self._in = packed, width
        self.matrix = packed.matrix
        self._library = library([packed.format])

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """``[..., in] -> [..., out]``."""
        states = states.contiguous()
        product = states.new_empty(*states.shape[:-1], self._packed.out)
        with profiled("entmtp::linear"):
            self._library.entmtp_linear(
                states.data_ptr(),
                byref(self.matrix),
                None if self.bias is None else self.bias.data_ptr(),
                product.data_ptr(),
                states.numel() // self._in,
                self._in,
                self.digits,
                torch.get_num_threads(),
            )
        return product


class FusedLinear(CompiledLinear):
    """A linear layer with a weight in float32 or in GGUF's blocks, as precise as float32 and the same for any batch."""

    def __init__(self, weight: Weight, bias: torch.Tensor | None) -> None:
        super().__init__(pack(weight), weight.shape[1], bias)


class Int16Linear(FusedLinear):
    """A linear layer that rounds its states to 16 bits in blocks, so that products with GGUF's blocks are of integers.

    Lossy: each block's largest value is 32,512 steps. A weight in float32 is multiplied as it is.
    """

    digits = 2


class Int8Linear(FusedLinear):
    """As :class:`Int16Linear`, with 8 bits: each block's largest value is 127 steps."""

    digits = 1


class DraftLinear(Int8Linear):
    """A linear layer of draft heads: weight and states are rounded to int8 in blocks of 32.

    A weight whose rows aren't whole blocks stays as it is.
    """

    def __init__(self, weight: Weight, bias: torch.Tensor | None) -> None:
        super().__init__(draft_weight(weight), bias)
