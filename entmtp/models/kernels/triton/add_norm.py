"""The residual's sum and the RMS norm after it in one kernel, instead of nine.

Values are rounded where transformers' ``LlamaRMSNorm`` rounds them: ``x = x + update``, then
``y = weight * round(x / sqrt(mean(x^2) + eps))``.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from entmtp.models.kernels.triton.operators import operator


@triton.jit
def add_norm_kernel(states, update, weight, normed, width, eps, has_update: tl.constexpr, block: tl.constexpr):
    """One program per row of ``states [rows, width]``."""
    row = tl.program_id(0).to(tl.int64) * width
    column = tl.arange(0, block)
    inside = column < width
    x = tl.load(states + row + column, mask=inside, other=0.0)
    if has_update:
        added = x.to(tl.float32) + tl.load(update + row + column, mask=inside, other=0.0).to(tl.float32)
        x = added.to(states.dtype.element_ty)
        tl.store(states + row + column, x, mask=inside)
    x = x.to(tl.float32)
    scale = tl.rsqrt(tl.sum(x * x, axis=0) / width + eps)
    rounded = (x * scale).to(states.dtype.element_ty).to(tl.float32)
    y = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32) * rounded
    tl.store(normed + row + column, y.to(normed.dtype.element_ty), mask=inside)


@operator("add_norm(Tensor(a!) states, Tensor? update, Tensor weight, Tensor(b!) normed, float eps) -> ()")
def _add_norm(
    states: torch.Tensor, update: torch.Tensor | None, weight: torch.Tensor, normed: torch.Tensor, eps: float
) -> None:
    rows, width = states.shape
    block = triton.next_power_of_2(width)
    add_norm_kernel[(rows,)](
        states,
        update if update is not None else states,
        weight,
        normed,
        width,
        eps,
        has_update=update is not None,
        block=block,
        num_warps=norm_warps(block),
    )


def norm_warps(block: int) -> int:
    """Warps of a program over ``block`` columns: 8 to 32 columns a thread."""
    return min(16, max(4, block // 1024))


def add_norm(states: torch.Tensor, update: torch.Tensor | None, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Add ``update [rows, width]`` to ``states [rows, width]`` in place, if given; returns their RMS norm.

    All are contiguous; ``weight`` is ``[width]``.
    """
    normed = torch.empty_like(states)
    _add_norm(states, update, weight, normed, eps)
    return normed
