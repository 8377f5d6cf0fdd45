"""Expansion of trees under grammars: forbidden guesses make room for the next likeliest ones.

Where a grammar leaves one token, that one is the only guess, and certain.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from entmtp.decoding.grammars.constraint import Constraint
from entmtp.heads.interface import EditableExpansion, Expansion

SPARE = 12
"""Guesses that are drafted beyond those that a policy wants, to replace forbidden ones."""
FORBIDDEN = -1e4
"""Log-probability of a guess that is not to be verified."""

Tokens = tuple[int, ...]
"""Path of a tree by its tokens instead of ranks."""


class ConstrainedExpansion(Expansion):
    """Expansion whose guesses are those that each request's grammar allows.

    Attributes:
        allowed: allowed guesses of each request so far, by the tokens of their paths.
    """

    def __init__(self, expansion: EditableExpansion, constraints: Sequence[Constraint | None]) -> None:
        self.num_heads = expansion.num_heads
        self.allowed: list[set[Tokens]] = [set() for _ in constraints]
        self._expansion, self._constraints = expansion, constraints
        # Request and path of each guess of the last level; no path if it is forbidden.
        self._guesses: list[tuple[int, Tokens | None]] = [(request, ()) for request in range(len(constraints))]

    def next_level(self, parents: Sequence[int], count: int) -> tuple[torch.Tensor, torch.Tensor]:
        expanded = [self._guesses[parent] for parent in parents]
        tokens, log_probs = self._expansion.next_level(parents, count + SPARE)
        count = min(count, tokens.shape[1])
        self._guesses, guessed = [], []
        for (request, path), own, values in zip(expanded, tokens.tolist(), log_probs.tolist(), strict=True):
            ranked = self._ranked(request, path, list(zip(own, values, strict=True)), count)
            guessed.append(ranked)
            for token, value in ranked:
                child = None if path is None or value == FORBIDDEN else (*path, token)
                self._guesses.append((request, child))
                if child is not None:
                    self.allowed[request].add(child)
        tokens = tokens.new_tensor([[token for token, _ in ranked] for ranked in guessed])
        self._expansion.replace(tokens)
        return tokens, log_probs.new_tensor([[value for _, value in ranked] for ranked in guessed])

    def estimated_odds(self) -> torch.Tensor | None:
        return self._expansion.estimated_odds()

    def _ranked(
        self, request: int, path: Tokens | None, guesses: list[tuple[int, float]], count: int
    ) -> list[tuple[int, float]]:
        """The ``count`` likeliest allowed guesses after a path, padded with forbidden ones."""
        constraint = self._constraints[request]
        if constraint is None:
            return guesses[:count]
        found: list[tuple[int, float]] = []
        if path is not None:
            try:
                with constraint.after(path):
                    found = _allowed_guesses(constraint, guesses, count)
            except Exception as error:  # of any type: it is caused by this request alone
                constraint.failure = error
        return [*found, *[(0, FORBIDDEN)] * (count - len(found))]


def _allowed_guesses(constraint: Constraint, guesses: list[tuple[int, float]], count: int) -> list[tuple[int, float]]:
    if not constraint.can_go_on:
        return []
    if forced := constraint.forced(1):
        return [(forced[0], 0.0)]
    found: list[tuple[int, float]] = []
    for token, log_prob in guesses:
        if len(found) == count:
            break
        if constraint.allows(token):
            found.append((token, log_prob))
    return found
