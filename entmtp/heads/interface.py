"""Interface between draft heads and the decoding loop.

A :class:`Drafter` drafts for the slots of one cache. It stores the states that drafting after each slot's root starts
from. It makes them from *features* of the tokens that the model has read: their final decoder states, or the states
that enter the layers that its heads name (:attr:`~entmtp.heads.base.DraftHeads.feature_layers`). Heads that guess from
the features of one token alone need no more than that (:mod:`entmtp.heads.stateless`).

Other heads attend to earlier positions, so they have a draft cache. What they store of each token
(:attr:`~entmtp.heads.base.DraftHeads.cache_layout`) lies in the same rows of the model's own cache. Truncating, copying
or reusing a slot and committing an accepted path therefore move the draft cache along. The drafter only has to *append*
committed tokens: a chunk of a prompt, the first root, or an accepted path with the root after it.

The draft cache entry of position p may need the decoder state of position p - 1 alone. The root then has an entry
before the model has read it, so these heads are one token ahead of the model
(:mod:`entmtp.heads.autoregressive.heads`). Multi-token-prediction layers and EAGLE-3 are of this kind. Hydra++ heads
are not: their decoder layer reads the same tokens as the model, and they guess from its last state instead of the
model's (:mod:`entmtp.heads.hydra_plus_plus`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import torch

from entmtp.trees.batch import TreeBatch


@dataclass(frozen=True)
class Proposal:
    """Drafted tokens of a step's trees.

    Attributes:
        tokens: ``[batch, width]`` int64, the root first, 0 on padding.
        log_probs: ``[batch, width]`` float32, each node's log-probability given its parent, under the heads; 0 for the
            root and padding.
    """

    tokens: torch.Tensor
    log_probs: torch.Tensor

    @classmethod
    def of_roots(cls, root: torch.Tensor) -> Self:
        """A proposal of the roots ``[batch]`` alone."""
        return cls(root[:, None], torch.zeros_like(root, dtype=torch.float32)[:, None])


@dataclass(frozen=True)
class AcceptedPaths:
    """Accepted paths of a step's requests, still on the device.

    Attributes:
        tokens: ``[batch, width]`` the trees' tokens, the root first.
        features: ``[batch, width, feature_size]`` what the heads read of the trees' nodes.
        nodes: ``[batch, n]`` tree columns of the accepted paths, the root first; ignored from ``counts`` on.
        counts: ``[batch]`` accepted tokens, the root included; 0 in idle batch rows.
        roots: ``[batch]`` the new roots, chosen after the accepted paths.
        last: ``[batch]`` tree columns of the paths' last nodes; any in idle batch rows.
        padded: whether batch rows may be idle, so that what belongs to their slots must stay.
    """

    tokens: torch.Tensor
    features: torch.Tensor
    nodes: torch.Tensor
    counts: torch.Tensor
    roots: torch.Tensor
    last: torch.Tensor
    padded: bool

    @property
    def last_features(self) -> torch.Tensor:
        """Features ``[batch, feature_size]`` of the nodes after which the new roots were chosen."""
        return self.features[torch.arange(len(self.last), device=self.last.device), self.last]

    @property
    def path_features(self) -> torch.Tensor:
        """Features ``[batch, n, feature_size]`` along the paths."""
        return self.features.gather(1, self.nodes[..., None].expand(-1, -1, self.features.shape[-1]))

    @property
    def next_tokens(self) -> torch.Tensor:
        """Successors ``[batch, n]`` of the paths' tokens; the last one's is the new root."""
        last = self.counts[:, None] - 1
        return self.tokens.gather(1, self.nodes).roll(-1, dims=1).scatter(1, last, self.roots[:, None])


class Expansion(Protocol):
    """Drafting of a step's trees level by level, all requests together.

    Guess i of a level is rank ``i % count`` of the level's parent ``i // count``.
    """

    num_heads: int

    def next_level(self, parents: Sequence[int], count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Guesses the ``count`` likeliest tokens after each of ``parents``, which are guesses of the last level.

        Returns the tokens and their log-probabilities, both ``[parents, count]``. There are fewer columns if the draft
        vocabulary is smaller. The first level's parents are the roots, in the order of the requests.
        """

    def estimated_odds(self) -> torch.Tensor | None:
        """Log-odds ``[parents]`` that a guess after each parent of the last level is accepted, as the heads estimate.

        None if they estimate nothing. The work is done here, so that levels cost no more where it isn't called.
        """
        return None


class EditableExpansion(Expansion, Protocol):
    """Expansion whose guesses may be replaced before the next level goes on from them."""

    def replace(self, tokens: torch.Tensor) -> None:
        """Takes ``tokens [parents, n]`` in place of the last level's guesses.

        They are tokens of the model, which need not be in the draft vocabulary.
        """


class Drafter(ABC):
    """Drafting for the slots of one cache; runs under inference mode.

    Attributes:
        states: ``[slots, ...]`` states from which drafting after each slot's root starts.
        is_capturable: whether :meth:`draft` and :meth:`append` may be captured as CUDA graphs, which requires
            that their work depends on tree shapes alone.
        catches_up: whether :attr:`states` may change when drafting starts, since earlier steps left work to it.
    """

    states: torch.Tensor
    is_capturable = False
    catches_up = False

    @abstractmethod
    def prefill(self, slot: int, features: torch.Tensor, tokens: Sequence[int]) -> None:
        """Appends the last tokens of ``slot``, which the model has read.

        ``features [n, feature_size]`` are those of ``tokens [n]``.
        """

    @abstractmethod
    def start(self, slot: int, root: torch.Tensor) -> None:
        """Appends the first root ``[]``, chosen after the prefilled tokens."""

    @abstractmethod
    def append(self, slots: tuple[int, ...], accepted: AcceptedPaths) -> None:
        """Appends accepted paths, which the cache has already committed."""

    @abstractmethod
    def draft(self, slots: tuple[int, ...], roots: torch.Tensor, trees: TreeBatch) -> Proposal:
        """Drafts ``trees``, which were checked before, after ``roots [batch]``."""

    @abstractmethod
    def expand(self, slots: tuple[int, ...], roots: torch.Tensor) -> EditableExpansion:
        """Starts drafting level by level after ``roots [batch]``."""


class TracedText(ABC):
    """A whole text that the heads have read, for rank traces.

    Attention is causal. Positions count from the first token of the text's answer.
    """

    @abstractmethod
    def teacher_forced(self, at: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Head states ``[n, heads, hidden_size]`` at positions ``at [n]``, given the true continuation.

        ``tokens [n, num_heads]`` are the roots at these positions and the tokens after them. Entry ``[:, i]`` of the
        result guesses the token after ``tokens[:, i]``.
        """

    @abstractmethod
    def expand(self, at: int) -> Expansion:
        """Starts drafting level by level after the token at position ``at``."""
