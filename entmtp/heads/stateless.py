"""Heads that guess from one decoder state alone: the drafter holds that state, and nothing lies in the cache."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch

from entmtp.heads.base import DraftHeads
from entmtp.heads.interface import AcceptedPaths, Drafter, Proposal, TracedText
from entmtp.models.cache import TreeCache
from entmtp.trees.batch import TreeBatch


class StatelessHeads(DraftHeads):
    """Base of heads whose guesses after a root depend on the root and the decoder state that chose it."""

    def drafter(self, cache: TreeCache) -> Drafter:
        return StatelessDrafter(self, cache)

    def traced_text(self, hidden: torch.Tensor, tokens: torch.Tensor, begin: int) -> TracedText:
        return StatelessText(self, hidden[begin - 1 : -1], tokens[begin:])

    @abstractmethod
    def teacher_forced(self, hidden: torch.Tensor, tokens: torch.Tensor, heads: int | None = None) -> torch.Tensor:
        """Head states where the true continuation is known, for training and rank traces.

        ``hidden [n, hidden_size]`` chose ``tokens[:, 0]`` (the root); ``tokens [n, num_heads]`` are the root and the
        tokens after it. Entry ``[:, i]`` of the result ``[n, heads, hidden_size]`` guesses the token after
        ``tokens[:, i]``.
        """

    @torch.inference_mode()
    def propose(self, hidden: torch.Tensor, root: torch.Tensor, trees: TreeBatch) -> Proposal:
        """Fills each request's topology with tokens.

        ``hidden [batch, hidden_size]`` is the decoder state that chose ``root [batch]``.

        Raises:
            EntMTPError: if a tree asks for more than these heads have (:meth:`check_trees`).
        """
        self.check_trees(trees.topologies)
        return self.draft(hidden, root, trees)

    @abstractmethod
    def draft(self, hidden: torch.Tensor, root: torch.Tensor, trees: TreeBatch) -> Proposal:
        """:meth:`propose` for trees that were checked; needs nothing from the host but what ``trees.shape`` says."""

    @abstractmethod
    def expand(
        self, hidden: torch.Tensor, tokens: torch.Tensor, level: int, prefix_state: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Head states ``[n, hidden_size]`` after ``tokens [n]`` at depth ``level`` of trees that are being expanded.

        ``hidden [n, hidden_size]`` chose their roots. Of the second result ``[n, ...]`` the rows that the next tokens'
        paths went through are given back as ``prefix_state`` at the next level.
        """


class StatelessDrafter(Drafter):
    """Drafts from the decoder state that chose each root.

    Attributes:
        states: ``[slots, hidden_size]`` that state.
    """

    is_capturable = True

    def __init__(self, heads: StatelessHeads, cache: TreeCache) -> None:
        self._heads, self._table = heads, cache.table
        shape = len(cache.lengths), heads.config.hidden_size
        self.states = torch.zeros(shape, dtype=heads.state_dtype, device=cache.table.device)

    def prefill(self, slot: int, hidden: torch.Tensor, tokens: Sequence[int]) -> None:
        self.states[slot] = hidden[-1]

    def start(self, slot: int, root: torch.Tensor) -> None:
        """The root has no decoder state yet."""

    def append(self, slots: tuple[int, ...], accepted: AcceptedPaths) -> None:
        rows, busy = self._table.index(slots), accepted.counts > 0
        self.states[rows] = torch.where(busy[:, None], accepted.last_hidden, self.states[rows])

    def draft(self, slots: tuple[int, ...], roots: torch.Tensor, trees: TreeBatch) -> Proposal:
        return self._heads.draft(self.states[self._table.index(slots)], roots, trees)

    def expand(self, slots: tuple[int, ...], roots: torch.Tensor) -> StatelessExpansion:
        return StatelessExpansion(self._heads, self.states[self._table.index(slots)], roots)


class StatelessExpansion:
    """One pass of the heads over the asked parents per level."""

    def __init__(self, heads: StatelessHeads, hidden: torch.Tensor, roots: torch.Tensor) -> None:
        """``hidden [requests, hidden_size]`` are the decoder states that chose ``roots [requests]``."""
        self.num_heads = heads.num_heads
        self._heads, self._hidden = heads, hidden
        self._prefix_state: torch.Tensor | None = None
        self._tokens = roots[:, None]
        self._level = 0

    @torch.inference_mode()
    def next_level(self, parents: Sequence[int], count: int) -> tuple[torch.Tensor, torch.Tensor]:
        expanded = torch.tensor(parents, device=self._tokens.device)
        rows = expanded // self._tokens.shape[1]
        self._hidden = self._hidden[rows]
        prefix = None if self._prefix_state is None else self._prefix_state[rows]
        tokens = self._tokens.flatten()[expanded]
        states, self._prefix_state = self._heads.expand(self._hidden, tokens, self._level, prefix)
        self._tokens, log_probs = self._heads.top_k(states, count, self._level)
        self._level += 1
        return self._tokens, log_probs


class StatelessText(TracedText):
    """A text by the decoder states that chose its tokens."""

    def __init__(self, heads: StatelessHeads, hidden: torch.Tensor, answer: torch.Tensor) -> None:
        """``hidden [n, hidden_size]`` are the states that chose the tokens ``answer [n]``."""
        self._heads, self._hidden, self._answer = heads, hidden, answer

    def teacher_forced(self, at: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        return self._heads.teacher_forced(self._hidden[at], tokens)

    def expand(self, at: int) -> StatelessExpansion:
        return StatelessExpansion(self._heads, self._hidden[at : at + 1], self._answer[at : at + 1])
