"""Attention of the nodes of trees to their requests' cache rows, split over the rows of long contexts.

A node sees the committed rows of its slot, and of the rows that the pass wrote those in its word of bits
(:mod:`entmtp.models.kernels.triton.ancestor_bits`). The query heads that share a key/value head are rows of one tile,
so that the cache is read once for all of them. Each of ``splits`` programs reads a part of the committed rows and the
last one the tree's too; :func:`combine_kernel` weighs their results by their log-sum-exps. Lengths and slots are read
on the device: one captured graph serves every context.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from entmtp.models.kernels.triton.operators import operator

MAX_SPLITS = 16
NO_WINDOW = 2**30
"""Sliding window of layers that have none, in positions."""
STAGES = 2
"""Tiles of keys and values in shared memory at a time."""
REGISTERS = 255
"""Registers of a thread: with a limit of its own choice the assembler spills a few for more programs at a time."""
_LOG2_E = 1.4426950408889634


@triton.jit
def _attend_rows(
    query, keys, values, row, visible, maximum, total, weighted, scale, head_dim: tl.constexpr, dim_block: tl.constexpr
):
    """Take cache rows ``row [rows_block]`` into a running softmax of base 2."""
    column = tl.arange(0, dim_block)
    is_read = (row[:, None] >= 0) & (column[None, :] < head_dim)
    at = row[:, None] * head_dim + column[None, :]
    key = tl.load(keys + at, mask=is_read, other=0.0)
    scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
    scores = tl.where(visible, scores, float("-inf"))
    highest = tl.maximum(maximum, tl.max(scores, axis=1))
    reference = tl.where(highest == float("-inf"), 0.0, highest)  # of rows that have seen nothing yet
    shrink = tl.exp2(maximum - reference)
    weights = tl.exp2(scores - reference[:, None])
    value = tl.load(values + at, mask=is_read, other=0.0)
    update = tl.dot(weights.to(value.dtype), value, input_precision="ieee")
    return highest, total * shrink + tl.sum(weights, axis=1), weighted * shrink[:, None] + update


@triton.jit(do_not_specialize=["n", "window"])  # one compilation for all trees and layers
def attend_kernel(
    qkv,
    keys,
    values,
    slots,
    start,
    bits,
    positions,
    outputs,
    log_sums,
    n,
    qkv_stride,
    slot_stride,
    head_stride,
    window,
    scale,
    groups: tl.constexpr,
    kv_heads: tl.constexpr,
    head_dim: tl.constexpr,
    splits: tl.constexpr,
    query_block: tl.constexpr,
    rows_block: tl.constexpr,
    dim_block: tl.constexpr,
):
    """One program per request, tile of a key/value head's queries, and split. Query row r is node ``r // groups``."""
    request = tl.program_id(0).to(tl.int64)
    tiles = tl.cdiv(groups * n, query_block)
    kv_head = tl.program_id(1) // tiles
    query_row = tl.program_id(1) % tiles * query_block + tl.arange(0, query_block)
    split = tl.program_id(2)
    is_query = query_row < groups * n
    token = request * n + query_row // groups
    head = kv_head * groups + query_row % groups
    column = tl.arange(0, dim_block)
    is_column = column < head_dim
    query = tl.load(
        qkv + (token * qkv_stride + head * head_dim)[:, None] + column[None, :],
        mask=is_query[:, None] & is_column[None, :],
        other=0.0,
    )
    position = tl.load(positions + token, mask=is_query, other=0).to(tl.int32)
    word = tl.load(bits + token, mask=is_query, other=0)

    in_slot = tl.load(slots + request) * slot_stride + kv_head.to(tl.int64) * head_stride
    length = tl.load(start + request).to(tl.int32)
    first = tl.maximum(1, tl.load(positions + request * n).to(tl.int32) - window + 2)  # the root sees no row before it
    chunk = tl.cdiv(tl.cdiv(tl.maximum(0, length + 1 - first), splits), rows_block) * rows_block
    begin = first + split * chunk
    end = tl.minimum(begin + chunk, length + 1)

    maximum = tl.full([query_block], float("-inf"), tl.float32)
    total = tl.zeros([query_block], tl.float32)
    weighted = tl.zeros([query_block, dim_block], tl.float32)
    for base in range(begin, end, rows_block):
        row = base + tl.arange(0, rows_block)
        visible = (row < end)[None, :] & (position[:, None] - (row[None, :] - 1) < window)
        maximum, total, weighted = _attend_rows(
            query, keys + in_slot, values + in_slot, tl.where(row < end, row, -1), visible, maximum, total, weighted,
            scale, head_dim, dim_block,
        )  # fmt: skip
    if split == splits - 1:
        for base in range(0, n, rows_block):
            node = base + tl.arange(0, rows_block)
            key_position = tl.load(positions + request * n + node, mask=node < n, other=0).to(tl.int32)
            is_written = tl.load(bits + request * n + node, mask=node < n, other=0) != 0
            row = tl.where(is_written, length + 1 + node, -1)
            visible = ((word[:, None] >> node[None, :]) & 1) == 1
            visible = visible & is_written[None, :] & (position[:, None] - key_position[None, :] < window)
            maximum, total, weighted = _attend_rows(
                query, keys + in_slot, values + in_slot, row, visible, maximum, total, weighted, scale, head_dim,
                dim_block,
            )  # fmt: skip

    divisor = tl.where(total == 0.0, 1.0, total)
    result = weighted / divisor[:, None]
    target = (token * groups * kv_heads + head) * splits + split
    tl.store(
        outputs + target[:, None] * head_dim + column[None, :],
        result.to(outputs.dtype.element_ty),
        mask=is_query[:, None] & is_column[None, :],
    )
    if splits > 1:
        tl.store(log_sums + target, tl.where(total == 0.0, float("-inf"), maximum + tl.log2(divisor)), mask=is_query)


@triton.jit
def combine_kernel(
    parts,
    log_sums,
    outputs,
    splits: tl.constexpr,
    head_dim: tl.constexpr,
    splits_block: tl.constexpr,
    dim_block: tl.constexpr,
):
    """One program per token and head: the mean of its parts ``[splits, head_dim]``, weighed by their sums."""
    query = tl.program_id(0).to(tl.int64)
    split = tl.arange(0, splits_block)
    column = tl.arange(0, dim_block)
    log_sum = tl.load(log_sums + query * splits + split, mask=split < splits, other=float("-inf"))
    highest = tl.max(log_sum, axis=0)
    weight = tl.exp2(log_sum - tl.where(highest == float("-inf"), 0.0, highest))
    part = tl.load(
        parts + (query * splits + split)[:, None] * head_dim + column[None, :],
        mask=(split < splits)[:, None] & (column < head_dim)[None, :],
        other=0.0,
    )
    total = tl.sum(weight, axis=0)
    mean = tl.sum(weight[:, None] * part, axis=0) / tl.where(total == 0.0, 1.0, total)
    tl.store(outputs + query * head_dim + column, mean.to(outputs.dtype.element_ty), mask=column < head_dim)


@operator(
    "attend(Tensor qkv, Tensor keys, Tensor values, Tensor slots, Tensor start, Tensor bits, Tensor positions,"
    " Tensor(a!) outputs, Tensor(b!) log_sums, int splits, int window, float scaling) -> ()"
)
def _attend(
    qkv: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    slots: torch.Tensor,
    start: torch.Tensor,
    bits: torch.Tensor,
    positions: torch.Tensor,
    outputs: torch.Tensor,
    log_sums: torch.Tensor,
    splits: int,
    window: int,
    scaling: float,
) -> None:
    batch, n = bits.shape
    kv_heads, head_dim = keys.shape[1], keys.shape[3]
    groups = qkv.shape[1] // head_dim // kv_heads - 2
    dim_block = max(16, triton.next_power_of_2(head_dim))
    tile = tile_of(groups * n, dim_block, keys.element_size())
    attend_kernel[(batch, kv_heads * triton.cdiv(groups * n, tile.queries), splits)](
        qkv,
        keys,
        values,
        slots,
        start,
        bits,
        positions,
        outputs,
        log_sums,
        n,
        qkv.stride(0),
        keys.stride(0),
        keys.stride(1),
        window,
        scaling * _LOG2_E,
        groups=groups,
        kv_heads=kv_heads,
        head_dim=head_dim,
        splits=splits,
        query_block=tile.queries,
        rows_block=tile.cache_rows,
        dim_block=dim_block,
        num_warps=tile.warps,
        num_stages=STAGES,
        maxnreg=REGISTERS,
    )


@operator("combine(Tensor parts, Tensor log_sums, Tensor(a!) outputs) -> ()")
def _combine(parts: torch.Tensor, log_sums: torch.Tensor, outputs: torch.Tensor) -> None:
    tokens, heads, splits, head_dim = parts.shape
    combine_kernel[(tokens * heads,)](
        parts,
        log_sums,
        outputs,
        splits=splits,
        head_dim=head_dim,
        splits_block=triton.next_power_of_2(splits),
        dim_block=triton.next_power_of_2(head_dim),
        num_warps=4,
    )


class Tile(NamedTuple):
    """Sizes of a program: rows of queries, cache rows that it reads at a time, and warps."""

    queries: int
    cache_rows: int
    warps: int


def tile_of(queries: int, dim_block: int, element_size: int) -> Tile:
    """The tile for so many query rows of a key/value head, for which no GPU has too few registers or shared memory.

    Matrix units need at least 16 rows. They have no float32, whose products take far more registers.
    """
    if element_size > 2:
        return Tile(16, 16, 4 if dim_block <= 128 else 8)
    rows = min(64, max(16, triton.next_power_of_2(queries)))
    return Tile(rows, 64 if dim_block <= 128 else 32, 8 if rows >= 32 else 4)


@cache
def processors(device: torch.device) -> int:
    """Multiprocessors of a GPU; 2 where kernels are interpreted."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2


def split_count(programs: int, device: torch.device) -> int:
    """Splits with which so many programs give each multiprocessor about two."""
    return max(1, min(MAX_SPLITS, 2 * processors(device) // programs))


def tree_attention(
    qkv: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    slots: torch.Tensor,
    start: torch.Tensor,
    bits: torch.Tensor,
    positions: torch.Tensor,
    scaling: float,
    window: int = NO_WINDOW,
    splits: int | None = None,
) -> torch.Tensor:
    """Attend the queries of a pass to the cache, which has the pass's keys and values already.

    Args:
        qkv: ``[batch * n, (heads + 2 kv_heads) * head_dim]`` contiguous, with rotated queries.
        keys, values: a layer's buffers ``[slots, kv_heads, rows, head_dim]`` of the same strides.
        slots, start: ``[batch]`` slot of each request, and its committed tokens: the pass wrote the rows after them.
        bits: ``[batch, n]`` contiguous, bit j of a node's word says that it sees node j; 0 on padding, without a row.
        positions: ``[batch, n]`` contiguous token positions of the nodes.
        scaling: factor of scores.
        window: size of the sliding window in positions.
        splits: parts of the committed rows; by default as many as fill the GPU.

    Returns:
        ``[batch * n, heads * head_dim]``; 0 for a node that sees nothing.
    """
    batch, n = bits.shape
    kv_heads, head_dim = keys.shape[1], keys.shape[3]
    heads = qkv.shape[1] // head_dim - 2 * kv_heads
    if splits is None:
        rows = heads // kv_heads * n
        tiles = triton.cdiv(rows, tile_of(rows, head_dim, keys.element_size()).queries)
        splits = split_count(batch * kv_heads * tiles, qkv.device)
    outputs = qkv.new_empty(batch * n, heads * head_dim)
    if splits == 1:
        _attend(qkv, keys, values, slots, start, bits, positions, outputs, start, 1, window, scaling)
        return outputs
    parts = qkv.new_empty(batch * n, heads, splits, head_dim, dtype=torch.float32)
    log_sums = parts.new_empty(batch * n, heads, splits)
    _attend(qkv, keys, values, slots, start, bits, positions, parts, log_sums, splits, window, scaling)
    _combine(parts, log_sums, outputs)
    return outputs
