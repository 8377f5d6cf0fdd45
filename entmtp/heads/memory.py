"""What some draft heads remember of each slot's text: heads that attend to what they saw at earlier positions.

Heads say what they keep of a token (:attr:`~entmtp.heads.base.DraftHeads.rows`); it lies in the rows of the model's own
cache. So a slot that is rewound, copied or begun with an earlier text carries its heads' rows with it, an accepted path
is made contiguous in them too, and nothing has to be told twice. What is left to do is to *extend* the rows by the
tokens that became certain: a part of a prompt, the first root, an accepted path with the root behind it.

The entry of the token at position p may need the decoder state of the token before it, so that the root, which the
model has not seen yet, has an entry already: heads are one token ahead of the model. Multi-token-prediction layers are
of that kind (:mod:`entmtp.heads.native.heads`). Heads that only want a decoder state that has looked back once more,
such as Hydra++'s (:mod:`entmtp.heads.hydra_plus_plus`), extend their layer in the same calls, and guess from what it
says of the last token instead of from the state itself.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from entmtp.heads.base import Proposal
    from entmtp.heads.growth import Growth
    from entmtp.trees.batch import TreeBatch


READ_TOGETHER = 512
"""Tokens that are taken in at once, as the model reads them."""


class HeadsMemory(ABC):
    """The heads' part of one cache. Runs under inference mode.

    Attributes:
        states: ``[slots, ...]`` what guessing behind each slot's root starts from.
    """

    states: torch.Tensor

    @abstractmethod
    def read(self, slot: int, hidden: torch.Tensor, tokens: Sequence[int]) -> None:
        """Takes in the last tokens of ``slot``, which the model has read: ``hidden [n, hidden_size]`` of ``tokens``."""

    @abstractmethod
    def begin(self, slot: int, root: torch.Tensor) -> None:
        """Takes in the root ``[]`` that was chosen behind what was read."""

    @abstractmethod
    def extend(self, slots: tuple[int, ...], hidden: torch.Tensor, tokens: torch.Tensor, counts: torch.Tensor) -> None:
        """Takes in accepted paths, which the cache has kept already but the host does not know of.

        Of each slot's path of ``counts [batch]`` tokens, ``hidden [batch, n, hidden_size]`` are its decoder states and
        ``tokens [batch, n]`` those *behind* them, the last of which is the new root. Entries from ``counts`` on mean
        nothing.
        """

    @abstractmethod
    def fill(self, slots: tuple[int, ...], roots: torch.Tensor, trees: TreeBatch) -> Proposal:
        """The trees behind ``roots [batch]``, filled with tokens; they were checked."""

    @abstractmethod
    def growth(self, slots: tuple[int, ...], roots: torch.Tensor) -> Growth:
        """Begins to guess behind ``roots [batch]``, level by level."""


class HeadsText(ABC):
    """A text that heads with a memory have read to its end; what stands behind a place is hidden from it.

    Places are counted from where the text's answer begins.
    """

    @abstractmethod
    def teacher_forced(self, at: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Head states ``[n, heads, hidden_size]`` behind the places ``at [n]``, where the true continuation is known.

        ``tokens [n, num_heads]`` are the roots there and the tokens behind them; entry ``[:, i]`` of the result guesses
        the token behind ``tokens[:, i]``.
        """

    @abstractmethod
    def growth(self, at: int) -> Growth:
        """Begins to guess behind the token at a place, level by level."""
