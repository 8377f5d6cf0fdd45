"""Attention masks of a pass: the cache rows that each query may attend to.

A query sees the committed rows of its slot and, among the rows that the pass writes, its ancestors and itself.
The token at position p is stored in cache row p + 1. Row 0 is the trash row (:mod:`entmtp.models.cache`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch

from entmtp.models.cache import KvRange


@dataclass(frozen=True)
class AttentionWindow:
    """Cache rows visible to the ``n`` queries of each batch row.

    Attributes:
        prefix_lengths: ``[batch, n]`` or ``[batch, 1]`` tokens, from the start of the text, that a query sees.
        start: ``[batch]`` the pass writes rows ``start + 1``, ``start + 2``, ...
        tree_mask: ``[batch, n, rows]`` bool, True where a query sees a row of the pass: its ancestors and itself.
        positions: ``[batch, n]`` token positions of the queries.
        tree_positions: ``[batch, rows]`` token positions of the rows of the pass.
        real: ``[batch, n]`` bool, False on padding.
    """

    prefix_lengths: torch.Tensor
    start: torch.Tensor
    tree_mask: torch.Tensor
    positions: torch.Tensor
    tree_positions: torch.Tensor
    real: torch.Tensor

    @classmethod
    def of_chains(cls, first: torch.Tensor, real: torch.Tensor) -> Self:
        """The causal window of consecutive tokens from position ``first [batch]`` on.

        ``real [batch, n]`` is False on padding.
        """
        at = torch.arange(real.shape[1], device=real.device)
        positions = first[:, None] + at
        chain = (at <= at[:, None]) & real[:, :, None] & real[:, None, :]
        return cls(first[:, None], first, chain, positions, positions, real)

    def visible(self, kv_range: KvRange, first_row: int = 1) -> torch.Tensor:
        """Visibility of the rows of ``kv_range``, ``[batch, n, rows]`` bool.

        Rows before ``first_row`` have no keys and stay hidden.
        """
        rows = torch.arange(kv_range.first, kv_range.last, device=self.real.device)
        repeats = self.real.shape[1] // self.prefix_lengths.shape[1]
        visible = (rows <= self.prefix_lengths[..., None]).repeat(1, repeats, 1)
        columns = self._tree_columns(kv_range)[:, None, :].expand_as(self.tree_mask)
        visible.scatter_(2, columns, self.tree_mask)
        visible[:, :, : first_row - kv_range.first] = False
        if kv_range.first == 0:
            # A padded query must see one row, or its softmax is NaN: it sees the trash row.
            visible[:, :, 0] = ~self.real
        return visible

    def within_sliding_window(self, kv_range: KvRange, size: int) -> torch.Tensor:
        """Rows of ``kv_range`` at most ``size - 1`` token positions before each query, ``[batch, n, rows]`` bool.

        Distances are in token positions, because the rows of a tree are not in that order.
        """
        length = kv_range.last - kv_range.first
        key_positions = (torch.arange(length, device=self.real.device) + kv_range.first - 1).repeat(len(self.real), 1)
        key_positions.scatter_(1, self._tree_columns(kv_range), self.tree_positions)
        within = self.positions[:, :, None] - key_positions[:, None, :] < size
        if kv_range.first == 0:
            within[:, :, 0] = True
        return within

    def _tree_columns(self, kv_range: KvRange) -> torch.Tensor:
        """Columns ``[batch, rows]`` of the rows of the pass within ``kv_range``."""
        tree_rows = torch.arange(self.tree_mask.shape[2], device=self.real.device)
        return self.start[:, None] + 1 - kv_range.first + tree_rows


def additive_mask(visible: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The additive attention mask ``[batch, 1, n, rows]``: 0 where ``visible``, else the most negative value."""
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return mask.masked_fill_(~visible, torch.finfo(dtype).min)[:, None]
