"""Linear layers with fewer bits than the model's float32, on CPUs, used only when requested by name.

A step of few rows reads every weight once. So half of the bytes takes nearly half of the time. The text is that of a
slightly different model. Decoding with it is still lossless, because a row's product never depends on the other rows.
So a tree is verified against the tokens that plain decoding with the same layers would write.
"""

from __future__ import annotations

import torch

from entmtp.models.kernels.packed_linear import InferenceLinear

_QUANTA = 127
_ZERO = 128
_SMALLEST = 1e-12


class Bfloat16Linear(InferenceLinear):
    """Linear layer with states and weights in bfloat16 and sums in float32, for AMX and AVX512-BF16 units."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__(bias)
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().bfloat16().contiguous(), None)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """``[..., in] -> [..., out]``, float32."""
        product = torch.ops.mkldnn._linear_pointwise(states.bfloat16(), self._packed, None, "none", [], "").float()
        return product if self.bias is None else product + self.bias


class Float16Linear(InferenceLinear):
    """Linear layer with weights in float16, states and sums in float32: half the bytes without bfloat16 units."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__(bias)
        self._packed = torch.ops.quantized.linear_prepack_fp16(weight.detach().contiguous(), bias)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """``[..., in] -> [..., out]``, float32."""
        product: torch.Tensor = torch.ops.quantized.linear_dynamic_fp16(states, self._packed)
        return product


class Int8Linear(InferenceLinear):
    """Linear layer with int8 weights (a scale per output), 8-bit states (a scale per *row*) and exact sums.

    The usual dynamic quantization has one scale for all rows, so that a token's result would depend on other tokens.
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
        # Unsigned with a zero point in the middle, because VNNI instructions multiply unsigned by signed.
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
        """Size of a quantum ``[..., 1]`` of each row."""
        return row_scale(states)


def row_scale(values: torch.Tensor) -> torch.Tensor:
    """Size of a quantum ``[..., 1]`` with which the largest value of each row is just representable."""
    return values.abs().amax(-1, keepdim=True).clamp_(min=_SMALLEST) / _QUANTA


@torch.inference_mode()
def int8_saturates() -> bool:
    """Whether this CPU's 8-bit sums overflow: without VNNI instructions pairs of products are added in 16 bits."""
    weight = torch.ones(64, 64)
    return not torch.allclose(Int8Linear(weight, None)(weight), weight @ weight)
