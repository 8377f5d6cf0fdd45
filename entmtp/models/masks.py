"""Which cache rows the queries of a pass may look at: committed ones, and those of the pass's own trees.

The token at position p lies in buffer row p + 1; row 0 is the trash row (:mod:`entmtp.models.cache`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch

from entmtp.models.cache import Span


@dataclass(frozen=True)
class View:
    """What ``n`` queries of each batch row may look at.

    Attributes:
        seen: ``[batch, n]`` or ``[batch, 1]``: tokens, from the text's first, whose rows a query sees.
        begin: ``[batch]`` the pass's own rows are ``begin + 1``, ``begin + 2``, ...
        own: ``[batch, n, rows]`` bool, which of them a query sees: its ancestors' and its own.
        positions: ``[batch, n]`` token positions of the queries.
        own_positions: ``[batch, rows]`` token positions of the pass's own rows.
        real: ``[batch, n]`` bool, False on padding.
    """

    seen: torch.Tensor
    begin: torch.Tensor
    own: torch.Tensor
    positions: torch.Tensor
    own_positions: torch.Tensor
    real: torch.Tensor

    @classmethod
    def of_chains(cls, first: torch.Tensor, real: torch.Tensor) -> Self:
        """Tokens one behind the other, from position ``first [batch]`` on, ``real [batch, n]`` where they are some."""
        at = torch.arange(real.shape[1], device=real.device)
        positions = first[:, None] + at
        chain = (at <= at[:, None]) & real[:, :, None] & real[:, None, :]
        return cls(first[:, None], first, chain, positions, positions, real)

    def visible(self, span: Span, least: int = 1) -> torch.Tensor:
        """``[batch, n, rows of the span]`` bool; the rows before the ``least`` hold nothing."""
        rows = torch.arange(span.first, span.last, device=self.real.device)
        visible = (rows <= self.seen[..., None]).repeat(1, self.real.shape[1] // self.seen.shape[1], 1)
        columns = self._columns(span)[:, None, :].expand_as(self.own)
        visible.scatter_(2, columns, self.own)
        visible[:, :, : least - span.first] = False
        if span.first == 0:
            # A padded query must see one row, or its softmax is NaN; row 0 is there for that.
            visible[:, :, 0] = ~self.real
        return visible

    def near(self, span: Span, window: int) -> torch.Tensor:
        """Rows within a sliding ``window``, in token positions (a tree's rows are not in that order)."""
        length = span.last - span.first
        key_positions = (torch.arange(length, device=self.real.device) + span.first - 1).repeat(len(self.real), 1)
        key_positions.scatter_(1, self._columns(span), self.own_positions)
        near = self.positions[:, :, None] - key_positions[:, None, :] < window
        if span.first == 0:
            near[:, :, 0] = True
        return near

    def _columns(self, span: Span) -> torch.Tensor:
        own = torch.arange(self.own.shape[2], device=self.real.device)
        return self.begin[:, None] + 1 - span.first + own


def additive(visible: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The mask ``[batch, 1, n, rows]`` that attention scores are added to."""
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return mask.masked_fill_(~visible, torch.finfo(dtype).min)[:, None]
