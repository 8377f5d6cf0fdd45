"""Rotary position embeddings of all positions, computed once by the model's own module."""

from __future__ import annotations

from typing import Any

import torch

FIXED = {"default", "linear", "yarn", "llama3"}
"""Types whose angles depend on a token's position alone. Those of others depend on the length of the text too."""


class RotaryTable:
    """Cosines and sines of a rotary module. The table grows with the texts; types that are not fixed have none.

    Attributes:
        is_fixed: whether the angles of a position are the same in any text.
    """

    def __init__(self, module: Any) -> None:
        self._module = module
        self.is_fixed = getattr(module, "rope_type", None) in FIXED
        self._table = torch.empty(0)

    def rows(self, positions: torch.Tensor, end: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines, then sines ``[rows, 2, head_dim]``, and the row ``[batch, n]`` of each of ``positions [batch, n]``.

        All positions are below ``end``.
        """
        if not self.is_fixed:
            return self._computed(positions).flatten(0, 1), torch.arange(positions.numel())
        return self.fixed_rows(end), positions

    def fixed_rows(self, end: int) -> torch.Tensor:
        """Those of positions 0, 1, ... up to ``end`` at least, where they are fixed."""
        if end > len(self._table):
            self._table = self._computed(torch.arange(2 * end)[None])[0]
        return self._table

    def _computed(self, positions: torch.Tensor) -> torch.Tensor:
        """``[batch, n, 2, head_dim]``."""
        return torch.stack(self._module(torch.empty(0, dtype=torch.float32), positions), dim=-2)
