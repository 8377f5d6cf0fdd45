"""Drafting level by level, for trees that are decided while they grow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from entmtp.heads.base import DraftHeads


class Growth(Protocol):
    """The guesses behind the roots of a step's requests, a level of all of them at a time.

    A level's guesses are numbered row by row: of each parent, in the order in which they were asked for, its ranks.
    """

    num_heads: int

    def next(self, parents: Sequence[int], count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The ``count`` likeliest tokens behind each of the last level's guesses ``parents``, with log-probabilities.

        Both ``[parents, count]``, fewer where the heads know no more tokens. The first level's parents are roots,
        numbered as the requests.
        """


class LevelByLevel:
    """One pass of the heads over the asked parents per level."""

    def __init__(self, heads: DraftHeads, hidden: torch.Tensor, roots: torch.Tensor) -> None:
        """``hidden [requests, hidden_size]`` are the decoder states that chose ``roots [requests]``."""
        self.num_heads = heads.num_heads
        self._heads, self._hidden = heads, hidden
        self._carried: torch.Tensor | None = None
        self._tokens = roots[:, None]
        self._level = 0

    @torch.inference_mode()
    def next(self, parents: Sequence[int], count: int) -> tuple[torch.Tensor, torch.Tensor]:
        asked = torch.tensor(parents, device=self._tokens.device)
        rows = asked // self._tokens.shape[1]
        self._hidden = self._hidden[rows]
        carried = None if self._carried is None else self._carried[rows]
        states, self._carried = self._heads.level(self._hidden, self._tokens.flatten()[asked], self._level, carried)
        self._tokens, log_probs = self._heads.best(states, count, self._level)
        self._level += 1
        return self._tokens, log_probs
