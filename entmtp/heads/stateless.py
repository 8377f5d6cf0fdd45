"""Heads that guess from one decoder state alone. The drafter stores it; there is no draft cache."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch

from entmtp.heads.base import DraftHeads
from entmtp.heads.interface import AcceptedPaths, Drafter, Expansion, Proposal, TracedText
from entmtp.models.cache import TreeCache
from entmtp.trees.batch import TreeBatch


class StatelessHeads(DraftHeads):
    """Base of heads whose guesses after a root depend on the root and its decoder state alone.

    A root's decoder state is the one from which the root was chosen. Heads that name :attr:`feature_layers` get the
    states of the same token that enter those layers instead, ``[..., feature_size]``, wherever ``hidden`` is given.
    """

    def drafter(self, cache: TreeCache) -> Drafter:
        return StatelessDrafter(self, cache)

    def traced_text(self, features: torch.Tensor, tokens: torch.Tensor, begin: int) -> TracedText:
        return StatelessText(self, features[begin - 1 : -1], tokens[begin:])

    @abstractmethod
    def teacher_forced(self, hidden: torch.Tensor, tokens: torch.Tensor, heads: int | None = None) -> torch.Tensor:
        """Head states given the true continuation, for training and rank traces.

        ``tokens [n, num_heads]`` are the root and the tokens after it. The root was chosen from the decoder state
        ``hidden [n, hidden_size]``. Entry ``[:, i]`` of the result ``[n, heads, hidden_size]`` guesses the token after
        ``tokens[:, i]``.
        """

    @torch.inference_mode()
    def propose(self, hidden: torch.Tensor, root: torch.Tensor, trees: TreeBatch) -> Proposal:
        """Drafts the tokens of each request's tree.

        ``root [batch]`` was chosen from the decoder state ``hidden [batch, hidden_size]``.

        Raises:
            EntMTPError: if a tree does not fit these heads (:meth:`check_trees`).
        """
        self.check_trees(trees.topologies)
        return self.draft(hidden, root, trees)

    @abstractmethod
    def draft(self, hidden: torch.Tensor, root: torch.Tensor, trees: TreeBatch) -> Proposal:
        """Drafts trees that were checked before, like :meth:`propose`.

        Its work depends on ``trees.shape`` alone, so that it can be captured as a CUDA graph.
        """

    @abstractmethod
    def expand(
        self, hidden: torch.Tensor, tokens: torch.Tensor, level: int, prefix_state: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Head states ``[n, hidden_size]`` after ``tokens [n]`` at depth ``level``, and the prefix states ``[n, ...]``.

        The trees' roots were chosen from ``hidden [n, hidden_size]``. At the next level the caller passes the parents'
        prefix states back as ``prefix_state``; it is None at level 0.
        """


class StatelessDrafter(Drafter):
    """Drafter that starts from the decoder state from which each root was chosen.

    Attributes:
        states: ``[slots, feature_size]`` these decoder states, or features.
    """

    is_capturable = True

    def __init__(self, heads: StatelessHeads, cache: TreeCache) -> None:
        self._heads, self._table = heads, cache.table
        shape = len(cache.lengths), heads.feature_size
        self.states = torch.zeros(shape, dtype=heads.state_dtype, device=cache.table.device)

    def prefill(self, slot: int, features: torch.Tensor, tokens: Sequence[int]) -> None:
        self.states[slot] = features[-1]

    def start(self, slot: int, root: torch.Tensor) -> None:
        """Does nothing: the root has no decoder state yet."""

    def append(self, slots: tuple[int, ...], accepted: AcceptedPaths) -> None:
        index, states = self._table.index(slots), accepted.last_features
        if accepted.padded:
            states = torch.where((accepted.counts > 0)[:, None], states, self.states[index])
        self.states[index] = states

    def draft(self, slots: tuple[int, ...], roots: torch.Tensor, trees: TreeBatch) -> Proposal:
        return self._heads.draft(self.states[self._table.index(slots)], roots, trees)

    def expand(self, slots: tuple[int, ...], roots: torch.Tensor) -> StatelessExpansion:
        return StatelessExpansion(self._heads, self.states[self._table.index(slots)], roots)


class StatelessExpansion(Expansion):
    """Drafting level by level; each level is one pass of the heads over its parents."""

    def __init__(self, heads: StatelessHeads, hidden: torch.Tensor, roots: torch.Tensor) -> None:
        """Takes the decoder states ``hidden [requests, hidden_size]`` from which ``roots [requests]`` were chosen."""
        self.num_heads = heads.num_heads
        self._heads, self._hidden = heads, hidden
        self._prefix_state: torch.Tensor | None = None
        self._tokens = roots[:, None]
        self._level = 0

    @torch.inference_mode()
    def next_level(self, parents: Sequence[int], count: int) -> tuple[torch.Tensor, torch.Tensor]:
        guesses = torch.tensor(parents, device=self._tokens.device)
        grandparents = guesses // self._tokens.shape[1]
        self._hidden = self._hidden[grandparents]
        prefix = None if self._prefix_state is None else self._prefix_state[grandparents]
        tokens = self._tokens.flatten()[guesses]
        states, self._prefix_state = self._heads.expand(self._hidden, tokens, self._level, prefix)
        self._tokens, log_probs = self._heads.top_k(states, count, self._level)
        self._level += 1
        return self._tokens, log_probs

    def replace(self, tokens: torch.Tensor) -> None:
        self._tokens = tokens


class StatelessText(TracedText):
    """A text given by the decoder states from which its tokens were chosen."""

    def __init__(self, heads: StatelessHeads, hidden: torch.Tensor, answer: torch.Tensor) -> None:
        """Takes the decoder states ``hidden [n, hidden_size]`` from which the tokens ``answer [n]`` were chosen."""
        self._heads, self._hidden, self._answer = heads, hidden, answer

    def teacher_forced(self, at: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        return self._heads.teacher_forced(self._hidden[at], tokens)

    def expand(self, at: int) -> StatelessExpansion:
        return StatelessExpansion(self._heads, self._hidden[at : at + 1], self._answer[at : at + 1])
