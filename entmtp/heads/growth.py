"""Drafting level by level, for trees that are decided while they grow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from entmtp.heads.base import DraftHeads


class Growth(Protocol):
    """The guesses behind one root, a level at a time.

    Each level's guesses are numbered ``parent * count + rank`` in the order of the parents that were asked for.
    """

    num_heads: int

    def next(self, parents: Sequence[int], count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The ``count`` likeliest tokens behind each of the last level's guesses ``parents``, with log-probabilities.

        Both ``[parents, count]``. The first level's only parent is the root, 0.
        """


class LevelByLevel:
    """One pass of the heads over the asked parents per level."""

    def __init__(self, heads: DraftHeads, hidden: torch.Tensor, root: torch.Tensor) -> None:
        """``hidden [1, hidden_size]`` is the decoder state that chose ``root [1]``."""
        self.num_heads = heads.num_heads
        self._heads, self._hidden = heads, hidden
        self._carried: torch.Tensor | None = None
        self._tokens = root[:, None]
        self._level = 0

    def next(self, parents: Sequence[int], count: int) -> tuple[torch.Tensor, torch.Tensor]:
        rows = torch.tensor(parents, device=self._tokens.device)
        tokens = self._tokens.flatten()[rows]
        states, self._carried = self._heads.level(
            self._hidden, tokens, self._level, self._carried, rows // self._tokens.shape[1]
        )
        tokens, log_probs = self._heads.best(states, count)
        self._level += 1
        # Heads that look at no tokens say the same behind every parent.
        self._tokens = tokens.expand(len(parents), -1)
        return self._tokens, log_probs.expand(len(parents), -1)
