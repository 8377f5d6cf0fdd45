"""Numbers of rows of logits that a step needs: the likeliest tokens, log-sum-exp and entropy.

A row is read once, in blocks that run in parallel. A second kernel merges the blocks' results.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from entmtp.models.kernels.triton.operators import operator

MAX_TOP = 32
BLOCK = 2048
_NO_INDEX = tl.constexpr(2**31 - 1)


class RowStatistics(NamedTuple):
    """Statistics of rows ``[...]`` of logits, in nats.

    Attributes:
        tokens, values: ``[..., count]`` the likeliest tokens, int64, and their logits in float32; likeliest first, of
            equal ones the smallest index.
        log_sum_exp, entropy: ``[...]`` in float32.
    """

    tokens: torch.Tensor
    values: torch.Tensor
    log_sum_exp: torch.Tensor
    entropy: torch.Tensor


@triton.jit(do_not_specialize=["blocks"])
def block_statistics_kernel(
    logits, values, indices, maxima, sums, moments, width, blocks, count: tl.constexpr, block: tl.constexpr
):
    """One program per row and block: its ``count`` largest, its maximum m, sum e^(x - m) and sum e^(x - m) (x - m)."""
    row, number = tl.program_id(0).to(tl.int64), tl.program_id(1)
    column = number * block + tl.arange(0, block)
    x = tl.load(logits + row * width + column, mask=column < width, other=float("-inf")).to(tl.float32)
    free = tl.where(column < width, column, _NO_INDEX)
    target = row * blocks + number
    maximum = tl.max(x, axis=0)
    difference = tl.where(x == float("-inf"), 0.0, x - maximum)
    weight = tl.where(x == float("-inf"), 0.0, tl.exp(difference))
    tl.store(maxima + target, maximum)
    tl.store(sums + target, tl.sum(weight, axis=0))
    tl.store(moments + target, tl.sum(weight * difference, axis=0))
    for rank in range(count):
        value = tl.max(x, axis=0)
        index = tl.min(tl.where(x == value, free, _NO_INDEX), axis=0)
        tl.store(values + target * count + rank, value)
        tl.store(indices + target * count + rank, index)
        x = tl.where(column == index, float("-inf"), x)
        free = tl.where(column == index, _NO_INDEX, free)


@triton.jit(do_not_specialize=["blocks"])
def merge_statistics_kernel(
    values, indices, maxima, sums, moments, tokens, top, log_sum_exp, entropy, width, blocks,
    count: tl.constexpr, blocks_block: tl.constexpr, candidates_block: tl.constexpr,
):  # fmt: skip
    """One program per row: merge its blocks."""
    row = tl.program_id(0).to(tl.int64)
    block = tl.arange(0, blocks_block)
    is_block = block < blocks
    maximum = tl.load(maxima + row * blocks + block, mask=is_block, other=float("-inf"))
    highest = tl.max(maximum, axis=0)
    # A block of nothing but -inf adds nothing, and neither does its shift.
    shift = tl.where(maximum == float("-inf"), 0.0, maximum - highest)
    scale = tl.where(maximum == float("-inf"), 0.0, tl.exp(shift))
    part = tl.load(sums + row * blocks + block, mask=is_block, other=0.0)
    moment = tl.load(moments + row * blocks + block, mask=is_block, other=0.0)
    total = tl.sum(scale * part, axis=0)
    mean = tl.sum(scale * (moment + part * shift), axis=0) / total
    tl.store(log_sum_exp + row, highest + tl.log(total))
    tl.store(entropy + row, tl.log(total) - mean)

    candidate = tl.arange(0, candidates_block)
    is_candidate = candidate < blocks * count
    x = tl.load(values + row * blocks * count + candidate, mask=is_candidate, other=float("-inf"))
    index = tl.load(indices + row * blocks * count + candidate, mask=is_candidate, other=_NO_INDEX)
    for rank in range(count):
        value = tl.max(x, axis=0)
        best = tl.min(tl.where(x == value, index, _NO_INDEX), axis=0)
        tl.store(tokens + row * count + rank, tl.minimum(best, width - 1).to(tl.int64))  # NaN equals nothing
        tl.store(top + row * count + rank, value)
        taken = index == best
        x = tl.where(taken, float("-inf"), x)
        index = tl.where(taken, _NO_INDEX, index)


@operator(
    "row_statistics(Tensor logits, Tensor(a!) values, Tensor(b!) indices, Tensor(c!) parts, Tensor(d!) tokens,"
    " Tensor(e!) top, Tensor(f!) log_sum_exp, Tensor(g!) entropy) -> ()"
)
def _row_statistics(
    logits: torch.Tensor,
    values: torch.Tensor,
    indices: torch.Tensor,
    parts: torch.Tensor,
    tokens: torch.Tensor,
    top: torch.Tensor,
    log_sum_exp: torch.Tensor,
    entropy: torch.Tensor,
) -> None:
    rows, blocks, count = values.shape
    width = logits.shape[1]
    maxima, sums, moments = parts
    block_statistics_kernel[(rows, blocks)](
        logits, values, indices, maxima, sums, moments, width, blocks, count=count, block=BLOCK, num_warps=4
    )
    merge_statistics_kernel[(rows,)](
        values, indices, maxima, sums, moments, tokens, top, log_sum_exp, entropy, width, blocks, count=count,
        blocks_block=triton.next_power_of_2(blocks), candidates_block=triton.next_power_of_2(blocks * count),
        num_warps=4,
    )  # fmt: skip


def row_statistics(logits: torch.Tensor, count: int = 1) -> RowStatistics:
    """Statistics of ``logits [..., width]`` contiguous, with the ``count`` likeliest tokens, at most 32 and the width.

    A NaN makes its row's log-sum-exp and entropy NaN; the tokens are indices all the same.
    """
    shape, width = logits.shape[:-1], logits.shape[-1]
    rows, blocks = logits.numel() // width, triton.cdiv(width, BLOCK)
    values = logits.new_empty(rows, blocks, count, dtype=torch.float32)
    indices = logits.new_empty(rows, blocks, count, dtype=torch.int32)
    parts = values.new_empty(3, rows, blocks)
    tokens, top = logits.new_empty(rows, count, dtype=torch.int64), values.new_empty(rows, count)
    log_sum_exp, entropy = values.new_empty(rows), values.new_empty(rows)
    _row_statistics(logits.view(rows, width), values, indices, parts, tokens, top, log_sum_exp, entropy)
    return RowStatistics(
        tokens.view(*shape, count), top.view(*shape, count), log_sum_exp.view(shape), entropy.view(shape)
    )
