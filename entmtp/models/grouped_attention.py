"""Attention of a few queries to a long cache whose key/value heads are shared by several query heads."""

from __future__ import annotations

import torch
from torch.nn.functional import scaled_dot_product_attention


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float | None = None,
) -> torch.Tensor:
    """Attend ``query [batch, heads, n, head_dim]`` to ``key``, ``value [batch, kv_heads, length, head_dim]``.

    ``mask [batch, 1, n, length]`` is bool or additive. It may be repeated beforehand to ``[batch, 1, groups * n,
    length]``, once for all layers of a pass. Returns ``[batch, n, heads, head_dim]``.
    """
    batch, heads, n, _ = query.shape
    groups = heads // key.shape[1]
    packed = query.reshape(batch, key.shape[1], groups * n, query.shape[-1])
    if mask is not None and mask.shape[2] != groups * n:
        mask = mask[:, :, :n].repeat(1, 1, groups, 1)
    attended = scaled_dot_product_attention(packed, key, value, attn_mask=mask, scale=scaling)
    return attended.reshape(batch, heads, n, value.shape[-1]).transpose(1, 2).contiguous()
