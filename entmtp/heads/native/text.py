"""A whole text under native heads: their states at every place of it at once, for rank traces."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from entmtp.heads.growth import Growth
from entmtp.heads.memory import HeadsText
from entmtp.heads.native.drafting import NativeGrowth
from entmtp.models.cache import TreeCache
from entmtp.models.masks import View

if TYPE_CHECKING:
    from entmtp.heads.native.heads import NativeHeads

ROOTS = 128
"""Places that are looked at together."""


class NativeText(HeadsText):
    """The text in a memory of its own; guesses are made in the rows behind its end."""

    @torch.inference_mode()
    def __init__(self, heads: NativeHeads, hidden: torch.Tensor, tokens: torch.Tensor, begin: int) -> None:
        """Arguments as :meth:`entmtp.heads.base.DraftHeads.text`."""
        self._heads, self._begin, self._length = heads, begin, len(tokens)
        self._end = torch.full((1,), self._length, device=tokens.device)
        rows, levels = heads.rows, heads.num_heads - heads.layers
        capacity = self._length + ROOTS * levels + rows.spare
        self._memory = heads.memory(TreeCache(rows.layers, 1, capacity, tokens.device, rows.notes))
        self._memory.cache.append([0], [self._length])
        none = torch.zeros(1, heads.layers, heads.config.hidden_size, dtype=hidden.dtype, device=hidden.device)
        self._states = torch.cat([none, *self._memory.taken_in(0, hidden, tokens.tolist())])

    @torch.inference_mode()
    def teacher_forced(self, at: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        parts = zip((at + self._begin).split(ROOTS), tokens.split(ROOTS), strict=True)
        return torch.cat([self._forced(*part) for part in parts])

    def _forced(self, at: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        layers, count = self._heads.layers, len(at)
        # A layer on its own level makes of a right guess what it makes of the text.
        forced = [self._states[self._inside(at + level), level] for level in range(layers)]
        states = self._states[self._inside(at + layers - 1)][None]
        seen = (at + layers).clamp(max=self._length)[None]
        same = torch.eye(count, dtype=torch.bool, device=at.device)
        for level in range(layers, self._heads.num_heads):
            depths = torch.arange(layers, level + 1, device=at.device).repeat_interleave(count)
            view = View(
                seen=seen,
                begin=self._end,
                own=same.repeat(1, level - layers + 1)[None],
                positions=(at + level)[None],
                own_positions=(at.repeat(level - layers + 1) + depths)[None],
                real=torch.ones(1, count, dtype=torch.bool, device=at.device),
            )
            start = self._end + (level - layers) * count
            states = self._memory.descend(level, (0,), tokens[None, :, level], states, view, start)
            forced.append(states[0, :, -1])
        return torch.stack(forced, dim=1)

    def growth(self, at: int) -> Growth:
        place = torch.full_like(self._end, self._begin + at)
        return NativeGrowth(self._memory, (0,), self._states[place], seen=place + 1, begin=self._end, position=place)

    def _inside(self, at: torch.Tensor) -> torch.Tensor:
        return at.clamp(max=self._length - 1)
