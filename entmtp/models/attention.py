"""Grouped-query attention over the tree cache, without repeating key/value heads.

``transformers`` repeats the key/value heads over the whole buffer whenever a mask is given. This packs the ``G`` query
heads that share a key/value head into ``G * n`` query rows. The result is the same, and the cache is read once.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from entmtp.models.grouped_attention import attend

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
    return attend(query, key, value, attention_mask, scaling), None


def _explicit_mask(*args: Any, **kwargs: Any) -> torch.Tensor | None:
    """The model's own mask, for calls without a tree mask. It is always explicit, never an ``is_causal`` flag."""
    return sdpa_mask(*args, **(kwargs | {"allow_is_causal_skip": False}))


AttentionInterface.register(NAME, grouped_attention)
AttentionMaskInterface.register(NAME, _explicit_mask)
