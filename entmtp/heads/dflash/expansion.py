"""Trees over one block's guesses. All depths are known at once, but for DSpark's bias by the parent's token."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from entmtp.heads.dflash.interface import BlockHeads
from entmtp.heads.interface import Expansion


class DFlashExpansion(Expansion):
    """Drafting after the roots of a batch of requests."""

    @torch.inference_mode()
    def __init__(self, heads: BlockHeads, states: torch.Tensor, roots: torch.Tensor) -> None:
        """Starts from the blocks' states ``[requests, depths, hidden_size]`` of ``roots [requests]``."""
        self.num_heads = states.shape[1]
        self._heads, self._states = heads, states
        # One product for all depths: it reads the output layer once.
        self._logits = heads.linear("output", states)
        self._requests = torch.arange(len(roots), device=roots.device)  # of the last level's parents
        self._parent_tokens = roots
        self._tokens = roots[:, None]
        self._level = 0

    @torch.inference_mode()
    def next_level(self, parents: Sequence[int], count: int) -> tuple[torch.Tensor, torch.Tensor]:
        guesses = torch.tensor(parents, device=self._tokens.device)
        self._requests = self._requests[guesses // self._tokens.shape[1]]
        self._parent_tokens = self._tokens.flatten()[guesses]
        self._tokens, log_probs = self._guess(self._logits[:, self._level], count)
        self._level += 1
        return self._tokens, log_probs

    def replace(self, tokens: torch.Tensor) -> None:
        self._tokens = tokens

    def _guess(self, logits: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The likeliest tokens after each parent, from a depth's ``logits [requests, draft_vocab_size]``."""
        previous = self._heads.token_vectors(self._parent_tokens)
        if previous is None:  # the same after every parent
            tokens, log_probs = self._heads.likeliest(logits, count)
            return tokens[self._requests], log_probs[self._requests]
        return self._heads.likeliest(logits[self._requests] + self._heads.linear("markov", previous), count)

    @torch.inference_mode()
    def estimated_odds(self) -> torch.Tensor | None:
        states = self._states[self._requests, self._level - 1]
        return self._heads.estimated_odds(self._heads.head_states(states, self._parent_tokens))
