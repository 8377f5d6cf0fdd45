"""Whole texts under DFlash heads, for rank traces: the blocks of many roots in one pass."""

from __future__ import annotations

import torch

from entmtp.heads.dflash.drafter import DFlashDrafter
from entmtp.heads.dflash.expansion import DFlashExpansion
from entmtp.heads.dflash.interface import BlockHeads
from entmtp.heads.interface import TracedText

ROOTS_PER_PASS = 32
"""Roots whose blocks are run in one pass."""


class DFlashText(TracedText):
    """A text in a cache of its own; blocks use the cache rows after its end."""

    @torch.inference_mode()
    def __init__(
        self, heads: BlockHeads, drafter: DFlashDrafter, features: torch.Tensor, tokens: torch.Tensor, begin: int
    ) -> None:
        """Reads the text; ``drafter`` has its own cache with one empty slot. See :meth:`DraftHeads.traced_text`."""
        self._heads, self._drafter, self._tokens, self._begin = heads, drafter, tokens, begin
        self._end = torch.full((1,), len(tokens), device=tokens.device)
        drafter.cache.append([0], [len(tokens)])
        drafter.prefill(0, features, tokens.tolist())

    @torch.inference_mode()
    def teacher_forced(self, at: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Head states, with the vectors of ``tokens`` after them if the heads have DSpark's bias."""
        states = torch.cat([self._block_states(part) for part in at.split(ROOTS_PER_PASS)])
        return self._heads.head_states(states, tokens)

    def expand(self, at: int) -> DFlashExpansion:
        position = torch.tensor([at], device=self._tokens.device)
        return DFlashExpansion(self._heads, self._block_states(position), self._tokens[self._begin + position])

    def _block_states(self, at: torch.Tensor) -> torch.Tensor:
        """States ``[n, depths, hidden_size]`` that guess after the answer's tokens ``at [n]``."""
        positions = self._begin + at
        return self._drafter.run_blocks((0,), self._tokens[positions][None], positions[None], self._end)[0]
