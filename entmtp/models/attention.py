"""Grouped-query attention over the tree cache, without repeating key/value heads.

``transformers`` repeats the key/value heads over the whole buffer whenever a mask is given. This packs the ``G`` query
heads that share a key/value head into ``G * n`` query rows. The result is the same, and the cache is read once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

NAME = "entmtp_tree"


class NeedsEagerAttention(Exception):
    """The model needs soft-capped scores or attention sinks, which scaled_dot_product_attention lacks."""


def grouped_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **extras: Any,
) -> tuple[torch.Tensor, None]:
    """Attend ``query [batch, heads, n, head_dim]`` to ``key``, ``value [batch, kv_heads, length, head_dim]``.

    ``attention_mask [batch, 1, n, length]`` is bool or additive. It may be repeated beforehand to
    ``[batch, 1, groups * n, length]``, once for all layers of a pass. Returns ``[batch, n, heads, head_dim]``.
    """
    if extras.get("softcap") is not None or extras.get("s_aux") is not None:
        raise NeedsEagerAttention
    batch, heads, n, _ = query.shape
    groups = heads // key.shape[1]
    packed = query.reshape(batch, key.shape[1], groups * n, query.shape[-1])
    if attention_mask is not None and attention_mask.shape[2] != groups * n:
        attention_mask = attention_mask[:, :, :n].repeat(1, 1, groups, 1)
    attended = scaled_dot_product_attention(packed, key, value, attn_mask=attention_mask, scale=scaling)
    return attended.reshape(batch, heads, n, value.shape[-1]).transpose(1, 2).contiguous(), None


def _explicit_mask(*args: Any, **kwargs: Any) -> torch.Tensor | None:
    """The model's own mask, for calls without a tree mask. It is always explicit, never an ``is_causal`` flag."""
    return sdpa_mask(*args, **(kwargs | {"allow_is_causal_skip": False}))


AttentionInterface.register(NAME, grouped_attention)
AttentionMaskInterface.register(NAME, _explicit_mask)
