"""Rotary embedding of queries and keys, norms of their heads, and the write of keys and values to the tree cache.

One kernel instead of about twelve. Values are rounded where transformers' ``apply_rotary_pos_emb`` rounds them:
``round(x * cos) + round(rotated * sin)``.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from entmtp.models.kernels.triton.operators import operator

HEADS_PER_PROGRAM = 8


@triton.jit(do_not_specialize=["tokens_per_request"])  # one compilation for all trees
def rope_write_kernel(
    qkv,
    cosines,
    sines,
    query_norm,
    key_norm,
    keys,
    values,
    slots,
    cache_rows,
    tokens_per_request,
    slot_stride,
    head_stride,
    eps,
    heads: tl.constexpr,
    kv_heads: tl.constexpr,
    head_dim: tl.constexpr,
    has_norms: tl.constexpr,
    heads_block: tl.constexpr,
    half_block: tl.constexpr,
):
    """One program per token and ``heads_block`` heads of its queries, keys and values; each head is read as halves."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * heads_block + tl.arange(0, heads_block)[:, None]
    half: tl.constexpr = head_dim // 2
    column = tl.arange(0, half_block)[None, :]
    inside = (head < heads + 2 * kv_heads) & (column < half)
    dtype = qkv.dtype.element_ty
    source = qkv + (token * (heads + 2 * kv_heads) + head) * head_dim + column
    first = tl.load(source, mask=inside, other=0.0)
    second = tl.load(source + half, mask=inside, other=0.0)
    is_query = head < heads
    is_value = head >= heads + kv_heads
    low, high = first.to(tl.float32), second.to(tl.float32)
    if has_norms:
        squares = tl.sum(low * low, axis=1) + tl.sum(high * high, axis=1)
        scale = tl.rsqrt(squares / head_dim + eps)[:, None]
        is_column = column < half
        query_low = tl.load(query_norm + column, mask=is_column, other=0.0).to(tl.float32)
        query_high = tl.load(query_norm + half + column, mask=is_column, other=0.0).to(tl.float32)
        key_low = tl.load(key_norm + column, mask=is_column, other=0.0).to(tl.float32)
        key_high = tl.load(key_norm + half + column, mask=is_column, other=0.0).to(tl.float32)
        low = tl.where(is_query, query_low, key_low) * (low * scale).to(dtype).to(tl.float32)
        high = tl.where(is_query, query_high, key_high) * (high * scale).to(dtype).to(tl.float32)
        low, high = low.to(dtype).to(tl.float32), high.to(dtype).to(tl.float32)
    angle = token * head_dim + column
    is_angle = column < half
    cos_low = tl.load(cosines + angle, mask=is_angle, other=0.0).to(tl.float32)
    cos_high = tl.load(cosines + angle + half, mask=is_angle, other=0.0).to(tl.float32)
    sin_low = tl.load(sines + angle, mask=is_angle, other=0.0).to(tl.float32)
    sin_high = tl.load(sines + angle + half, mask=is_angle, other=0.0).to(tl.float32)
    turned_low = (low * cos_low).to(dtype).to(tl.float32) - (high * sin_low).to(dtype).to(tl.float32)
    turned_high = (high * cos_high).to(dtype).to(tl.float32) + (low * sin_high).to(dtype).to(tl.float32)
    first = tl.where(is_value, first, turned_low.to(dtype))
    second = tl.where(is_value, second, turned_high.to(dtype))

    tl.store(source, first, mask=inside & is_query)
    tl.store(source + half, second, mask=inside & is_query)
    row = tl.load(cache_rows + token)
    slot = tl.load(slots + token // tokens_per_request)
    kv_head = tl.where(is_value, head - heads - kv_heads, head - heads)
    target = slot * slot_stride + kv_head.to(tl.int64) * head_stride + row * head_dim + column
    is_stored = inside & (row > 0)  # row 0 is padding's
    tl.store(keys + target, first, mask=is_stored & (head >= heads) & (head < heads + kv_heads))
    tl.store(keys + target + half, second, mask=is_stored & (head >= heads) & (head < heads + kv_heads))
    tl.store(values + target, first, mask=is_stored & is_value)
    tl.store(values + target + half, second, mask=is_stored & is_value)


@operator(
    "rope_write(Tensor(a!) qkv, Tensor cosines, Tensor sines, Tensor? query_norm, Tensor? key_norm, float eps,"
    " Tensor(b!) keys, Tensor(c!) values, Tensor slots, Tensor cache_rows) -> ()"
)
def rope_write(
    qkv: torch.Tensor,
    cosines: torch.Tensor,
    sines: torch.Tensor,
    query_norm: torch.Tensor | None,
    key_norm: torch.Tensor | None,
    eps: float,
    keys: torch.Tensor,
    values: torch.Tensor,
    slots: torch.Tensor,
    cache_rows: torch.Tensor,
) -> None:
    """Rotate the queries in place, and write rotated keys, and values, to the cache.

    Args:
        qkv: ``[tokens, (heads + 2 kv_heads) * head_dim]`` contiguous; keys and values in it stay as they are.
        cosines, sines: ``[tokens, head_dim]`` contiguous.
        query_norm, key_norm: weights ``[head_dim]`` of RMS norms before the rotation, with ``eps``; or None.
        keys, values: a layer's buffers ``[slots, kv_heads, rows, head_dim]`` of the same strides.
        slots: ``[batch]``.
        cache_rows: ``[batch, n]`` contiguous, the row of each token; nothing is stored where it is 0.
    """
    kv_heads, head_dim = keys.shape[1], keys.shape[3]
    total = qkv.shape[1] // head_dim
    rope_write_kernel[(len(qkv), triton.cdiv(total, HEADS_PER_PROGRAM))](
        qkv,
        cosines,
        sines,
        query_norm if query_norm is not None else qkv,
        key_norm if key_norm is not None else qkv,
        keys,
        values,
        slots,
        cache_rows,
        cache_rows.shape[1],
        keys.stride(0),
        keys.stride(1),
        eps,
        heads=total - 2 * kv_heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        has_norms=query_norm is not None,
        heads_block=HEADS_PER_PROGRAM,
        half_block=triton.next_power_of_2(head_dim // 2),
        num_warps=4,
    )
