"""The move of accepted cache rows in one kernel for each pool of buffers."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from entmtp.models.kernels.triton.operators import operator

COLUMNS = 128


@triton.jit(do_not_specialize=["heads", "count"])  # one compilation for paths of about a length
def move_rows_kernel(
    pool, slots, start, nodes, heads, count, block_stride, slot_stride, head_stride, head_dim,
    count_block: tl.constexpr, columns: tl.constexpr,
):  # fmt: skip
    """One program per buffer, request's head, and ``columns`` of its entries: all rows are read before any is written.

    Rows that stay in place are left out.
    """
    buffer = tl.program_id(0).to(tl.int64)
    request, head = tl.program_id(1) // heads, tl.program_id(1) % heads
    column = tl.program_id(2) * columns + tl.arange(0, columns)
    number = tl.arange(0, count_block)
    node = tl.load(nodes + request * count + number, mask=number < count, other=0)
    slot, first = tl.load(slots + request), tl.load(start + request) + 1
    base = pool + buffer * block_stride + slot * slot_stride + head.to(tl.int64) * head_stride
    is_moved = ((number < count) & (node != number))[:, None] & (column < head_dim)[None, :]
    entries = tl.load(base + ((first + node) * head_dim)[:, None] + column[None, :], mask=is_moved)
    tl.debug_barrier()
    tl.store(base + ((first + number) * head_dim)[:, None] + column[None, :], entries, mask=is_moved)


@operator("move_rows(Tensor(a!) pool, Tensor slots, Tensor start, Tensor nodes) -> ()")
def move_rows(pool: torch.Tensor, slots: torch.Tensor, start: torch.Tensor, nodes: torch.Tensor) -> None:
    """Move accepted rows together, as :func:`entmtp.models.cache.move_rows` does."""
    batch, count = nodes.shape
    buffers, _, heads, _, head_dim = pool.shape
    columns = min(COLUMNS, triton.next_power_of_2(head_dim))
    move_rows_kernel[(buffers, batch * heads, triton.cdiv(head_dim, columns))](
        pool, slots, start, nodes.contiguous(), heads, count, *pool.stride()[:3], head_dim,
        count_block=triton.next_power_of_2(count), columns=columns, num_warps=4,
    )  # fmt: skip
