"""Visibility within a tree as one 64-bit word a node, which kernels read instead of a matrix."""

from __future__ import annotations

import torch

MAX_NODES = 64
"""Nodes of a pass that a word has bits for."""


def ancestor_bits(visible: torch.Tensor) -> torch.Tensor:
    """Words ``[batch, n]``, int64, whose bit j is ``visible[..., j]``, for ``visible [batch, n, at most 64]`` bool."""
    at = torch.arange(visible.shape[-1], device=visible.device)
    return (visible.to(torch.int64) << at).sum(-1)
