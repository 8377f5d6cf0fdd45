"""The gated product ``silu(gate) * up`` of an MLP in one kernel, rounded where PyTorch's two operators round."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from entmtp.models.kernels.triton.operators import operator

BLOCK = 1024


@triton.jit
def silu_mul_kernel(gate_up, product, width, block: tl.constexpr):
    """One program per row and ``block`` columns of ``product [rows, width]``."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * block + tl.arange(0, block)
    inside = column < width
    gate = tl.load(gate_up + row * 2 * width + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * width + width + column, mask=inside, other=0.0).to(tl.float32)
    activated = (gate / (1 + tl.exp(-gate))).to(product.dtype.element_ty).to(tl.float32)
    tl.store(product + row * width + column, (activated * up).to(product.dtype.element_ty), mask=inside)


@operator("silu_mul(Tensor gate_up, Tensor(a!) product) -> ()")
def _silu_mul(gate_up: torch.Tensor, product: torch.Tensor) -> None:
    rows, width = product.shape
    silu_mul_kernel[(rows, triton.cdiv(width, BLOCK))](gate_up, product, width, block=BLOCK, num_warps=4)


def silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """``silu(gate) * up`` ``[rows, width]`` of gates, then values, ``[rows, 2 * width]`` contiguous."""
    product = gate_up.new_empty(gate_up.shape[0], gate_up.shape[1] // 2)
    _silu_mul(gate_up, product)
    return product
