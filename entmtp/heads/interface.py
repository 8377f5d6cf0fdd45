"""Interface between draft heads and the decoding loop.

A :class:`Drafter` drafts for the slots of one cache. It stores the states that drafting after each slot's root starts
from. Heads that guess from a decoder state alone need no more than that (:mod:`entmtp.heads.stateless`).

Other heads attend to earlier positions, so they have a draft cache. What they store of each token
(:attr:`~entmtp.heads.base.DraftHeads.cache_layout`) lies in the same rows of the model's own cache. Truncating, copying
or reusing a slot and committing an accepted path therefore move the draft cache along. The drafter only has to *append*
committed tokens: a chunk of a prompt, the first root, or an accepted path with the root after it.

The draft cache entry of position p may need the decoder state of position p - 1 alone. The root then has an entry
before the model has read it, so these heads are one token ahead of the model. Multi-token-prediction layers are of this
kind (:mod:`entmtp.heads.native.heads`). Hydra++ heads are not: their decoder layer reads the same tokens as the model,
and they guess from its last state in place of the model's (:mod:`entmtp.heads.hydra_plus_plus`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import torch

from entmtp.trees.batch import TreeBatch

PREFILL_CHUNK = 512
"""Tokens that are taken in at once, as the model reads them."""


@dataclass(frozen=True)
class Proposal:
    """The tokens of a step's trees.

    Attributes:
        tokens: ``[batch, width]`` int64, the root first, 0 on padding.
        log_probs: ``[batch, width]`` float32, of each node given its parent under the heads; 0 for root and padding.
    """

    tokens: torch.Tensor
    log_probs: torch.Tensor

    @classmethod
    def of_roots(cls, root: torch.Tensor) -> Self:
        """Nothing guessed after the roots ``[batch]``."""
        return cls(root[:, None], torch.zeros_like(root, dtype=torch.float32)[:, None])


@dataclass(frozen=True)
class AcceptedPaths:
    """What a step's requests accepted, as tensors that the host has not seen yet.

    Attributes:
        tokens: ``[batch, width]`` of the trees, the root first.
        hidden: ``[batch, width, hidden_size]`` the trees' decoder states.
        nodes: ``[batch, n]`` columns of the accepted paths, the root first; entries from ``counts`` on mean nothing.
        counts: ``[batch]`` tokens that were accepted, the root included; 0 in idle rows.
        roots: ``[batch]`` the tokens that were chosen after them.
    """

    tokens: torch.Tensor
    hidden: torch.Tensor
    nodes: torch.Tensor
    counts: torch.Tensor
    roots: torch.Tensor

    @property
    def last_hidden(self) -> torch.Tensor:
        """Decoder states ``[batch, hidden_size]`` that the new roots were chosen from."""
        last = self.nodes.gather(1, (self.counts[:, None] - 1).clamp(min=0))[:, 0]
        return self.hidden[torch.arange(len(last), device=last.device), last]

    @property
    def path_hidden(self) -> torch.Tensor:
        """Decoder states ``[batch, n, hidden_size]`` along the paths."""
        return self.hidden.gather(1, self.nodes[..., None].expand(-1, -1, self.hidden.shape[-1]))

    @property
    def next_tokens(self) -> torch.Tensor:
        """Tokens ``[batch, n]`` that come after each of the paths' tokens, the new root after the last."""
        last = self.counts[:, None] - 1
        return self.tokens.gather(1, self.nodes).roll(-1, dims=1).scatter(1, last, self.roots[:, None])


class Expansion(Protocol):
    """The guesses after the roots of a step's requests, a level of all of them at a time.

    Guess i of a level is rank ``i % count`` of the level's parent ``i // count``.
    """

    num_heads: int

    def next_level(self, parents: Sequence[int], count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The ``count`` likeliest tokens after each of the last level's guesses ``parents``, with log-probabilities.

        Both ``[parents, count]``, fewer where the heads know no more tokens. The first level's parents are roots,
        numbered as the requests.
        """


class Drafter(ABC):
    """Drafts for the slots of one cache. Runs under inference mode.

    Attributes:
        states: ``[slots, ...]`` what drafting after each slot's root starts from.
        is_capturable: whether :meth:`draft` and :meth:`append` may be captured as CUDA graphs, as their work depends on
            the shapes of trees alone.
    """

    states: torch.Tensor
    is_capturable = False

    @abstractmethod
    def prefill(self, slot: int, hidden: torch.Tensor, tokens: Sequence[int]) -> None:
        """Takes in the last tokens of ``slot``, which the model has read: ``hidden [n, hidden_size]`` of ``tokens``."""

    @abstractmethod
    def start(self, slot: int, root: torch.Tensor) -> None:
        """Takes in the root ``[]`` that was chosen after what was read."""

    @abstractmethod
    def append(self, slots: tuple[int, ...], accepted: AcceptedPaths) -> None:
        """Takes in accepted paths, which the cache has committed already."""

    @abstractmethod
    def draft(self, slots: tuple[int, ...], roots: torch.Tensor, trees: TreeBatch) -> Proposal:
        """The trees after ``roots [batch]``, filled with tokens; they were checked."""

    @abstractmethod
    def expand(self, slots: tuple[int, ...], roots: torch.Tensor) -> Expansion:
        """Begins to guess after ``roots [batch]``, level by level."""


class TracedText(ABC):
    """A text that heads with rows of their own have read to its end, for rank traces.

    What comes after a position is hidden from it. Positions are counted from where the text's answer begins.
    """

    @abstractmethod
    def teacher_forced(self, at: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Head states ``[n, heads, hidden_size]`` after the positions ``at [n]``, where the true continuation is known.

        ``tokens [n, num_heads]`` are the roots there and the tokens after them; entry ``[:, i]`` of the result guesses
        the token after ``tokens[:, i]``.
        """

    @abstractmethod
    def expand(self, at: int) -> Expansion:
        """Begins to guess after the token at a position, level by level."""
