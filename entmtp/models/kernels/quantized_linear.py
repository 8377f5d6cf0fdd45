"""Linear layers that multiply in fewer bits than the model's float32, on CPUs: only where someone asks for them.

A step of few rows reads every weight once, so half or a quarter of the bytes is nearly half or a quarter of the time.
The text is then that of a slightly different model. It stays *one* text: a row's product never depends on the rows
beside it, so that a tree is verified against exactly what plain decoding with the same layers writes.
"""

from __future__ import annotations

import torch

from entmtp.models.kernels.packed_linear import InferenceLinear

_QUANTA = 127
_ZERO = 128
_SMALLEST = 1e-12


class Bfloat16Linear(InferenceLinear):
    """States and weights rounded to bfloat16, sums in float32: what AMX and AVX512-BF16 units multiply."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__(bias)
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().bfloat16().contiguous(), None)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """``[..., in] -> [..., out]``, float32."""
        product = torch.ops.mkldnn._linear_pointwise(states.bfloat16(), self._packed, None, "none", [], "").float()
        return product if self.bias is None else product + self.bias


class Float16Linear(InferenceLinear):
    """Weights rounded to float16, states and sums in float32: half the bytes on a CPU without bfloat16 units."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__(bias)
        self._packed = torch.ops.quantized.linear_prepack_fp16(weight.detach().contiguous(), bias)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """``[..., in] -> [..., out]``, float32."""
        product: torch.Tensor = torch.ops.quantized.linear_dynamic_fp16(states, self._packed)
        return product


class Int8Linear(InferenceLinear):
    """Weights in 8 bits with a scale per output, states in 8 bits with a scale per *row*, sums exact.

    The usual dynamic quantisation has one scale for all rows, which makes a token's result depend on its neighbours.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__(bias)
        # Contiguous: a transposed weight (Conv1D's) would be packed in the wrong order.
        weight = weight.detach().contiguous()
        scale = row_scale(weight)
        self._packed = torch.ops.onednn.qlinear_prepack((weight / scale).round().to(torch.int8), None)
        self._scale = scale[:, 0]
        self._weight_zero = torch.zeros(len(weight), dtype=torch.int32)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """``[..., in] -> [..., out]``, float32."""
        scale = self.states_scale(states)
        # Unsigned with a zero in the middle: the instructions that every VNNI machine has multiply unsigned by signed.
        quanta = (states / scale).round_().add_(_ZERO).to(torch.uint8)
        product = torch.ops.onednn.qlinear_pointwise(
            quanta,
            1.0,
            _ZERO,
            self._packed,
            self._scale,
            self._weight_zero,
            None,
            1.0,
            0,
            torch.float32,
            "none",
            [],
            "",
        ).mul_(scale)
        return product if self.bias is None else product + self.bias

    def states_scale(self, states: torch.Tensor) -> torch.Tensor:
        """The size of a quantum ``[..., 1]`` of each row."""
        return row_scale(states)


def row_scale(values: torch.Tensor) -> torch.Tensor:
    """The size ``[..., 1]`` of a quantum with which each row's largest value is just representable."""
    return values.abs().amax(-1, keepdim=True).clamp_(min=_SMALLEST) / _QUANTA


@torch.inference_mode()
def int8_saturates() -> bool:
    """Whether this CPU's 8-bit sums overflow: without VNNI instructions pairs of products are added in 16 bits."""
    weight = torch.ones(64, 64)
    return not torch.allclose(Int8Linear(weight, None)(weight), weight @ weight)
