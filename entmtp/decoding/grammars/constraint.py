"""Constraint of one answer: which tokens its grammar allows next."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch

from entmtp.decoding.grammars.compiler import DEAD_END, Grammar
from entmtp.decoding.request import InvalidRequestError

if TYPE_CHECKING:
    from llguidance import LLMatcher


class Constraint:
    """State of a grammar after the tokens of one answer, the pending root included.

    Attributes:
        end: number of the answer's tokens with which its text is complete, so that nothing but its end may follow;
            None before.
        failure: error of a step, which ends this answer alone; None if there is none.
    """

    def __init__(
        self, grammar: Grammar, field: str, stop_ids: frozenset[int], min_tokens: int, *, begins_text: bool
    ) -> None:
        """``stop_ids`` end the answer; they are allowed where a complete text may end, after ``min_tokens`` tokens.

        ``field`` names the constraint in errors. ``begins_text`` if the answer is a text of its own, and does not go on
        from the prompt's.
        """
        self.end: int | None = None
        self.failure: Exception | None = None
        self._vocabulary, self._field = grammar.vocabulary, field
        self._matcher = grammar.start.deep_copy()
        self._first = grammar.first.deep_copy() if begins_text and grammar.first is not None else None
        self._stop_ids, self._min_tokens = sorted(stop_ids), min_tokens
        self._written = 0
        # Tokens that are forced from the current position on, and how many of them are written; None if not known.
        self._chain: tuple[list[int], int] | None = None

    @property
    def can_go_on(self) -> bool:
        """Whether a token may follow the answer and the consumed path."""
        return self.end is None and not self._matcher.is_stopped()

    def advance(self, tokens: Sequence[int]) -> None:
        """Take in the answer's next tokens, the new root among them; those after its end don't count.

        Raises:
            InvalidRequestError: if the grammar does not allow one.
            Exception: the step's :attr:`failure`.
        """
        if self.failure is not None:
            raise self.failure
        for token in tokens:
            if self.end is not None:
                return
            if token in self._stop_ids:
                self._written += 1
                self.end = self._written
                return
            self.forced(1)  # known at every position, as it is while a path is walked
            self.follow(token)
            if self._matcher.is_stopped():
                self.end = self._written

    @contextmanager
    def after(self, path: Sequence[int]) -> Iterator[Constraint]:
        """The constraint after the tokens of a ``path``, which it allows; more may be consumed within it."""
        before, chain = self._written, self._chain
        try:
            for token in path:
                self.follow(token)
            yield self
        finally:
            consumed, self._written, self._chain = self._written - before, before, chain
            if consumed and not self._matcher.rollback(consumed):
                raise self._error()

    def follow(self, token: int) -> None:
        """Consume one more token of a path."""
        self._consume(token)
        self._written += 1
        if self._chain is not None:
            tokens, written = self._chain
            goes_on = written + 1 < len(tokens) and tokens[written] == token
            self._chain = (tokens, written + 1) if goes_on else None

    def allows(self, token: int) -> bool:
        """Whether a token may come next; False for tokens that end the answer."""
        return token not in self._stop_ids and self._matcher.validate_tokens([token]) == 1

    def forced(self, limit: int) -> list[int]:
        """The next tokens as far as the grammar leaves one alone, at most ``limit``.

        They are found once for all of them, since that takes as long as their text. So they depend on the tokens so far
        alone, whatever tree these were in.
        """
        if self._chain is None:
            self._chain = self._matcher.compute_ff_tokens(), 0
            self._check()
        tokens, written = self._chain
        return tokens[written : written + limit]

    def chain(self, limit: int) -> list[int]:
        """The :meth:`forced` tokens, and likely ones after them, at most ``limit`` together.

        Where bytes are forced that several tokens could spell, those are likely that the tokenizer itself would take.
        """
        tokens = self.forced(limit)
        with self.after(tokens):
            if self.can_go_on and len(tokens) < limit:
                for token in self._vocabulary.tokens.tokenize_bytes(self._matcher.compute_ff_bytes()):
                    if len(tokens) == limit or not self.allows(token):
                        break
                    self.follow(token)
                    tokens.append(token)
        return tokens

    def apply_mask(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits ``[..., vocab_size]`` with all tokens at minus infinity that may not come next.

        Raises:
            InvalidRequestError: if there is none.
        """
        mask = torch.from_numpy(self._allowed()).to(logits.device)
        return torch.where(mask, logits, -math.inf)

    def _allowed(self) -> np.ndarray:
        """Mask ``[vocab_size]`` of the tokens that may come next; True is allowed."""
        matcher = self._first if self._first is not None and not self._written else self._matcher
        packed = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
        if matcher.is_error():
            raise self._error(matcher)
        size = self._vocabulary.size
        bits = np.unpackbits(packed, count=size + 1, bitorder="little").view(np.bool_)
        may_end, mask = bool(bits[size]), bits[:size]
        mask[self._stop_ids] = False
        if may_end and (self._written >= self._min_tokens or not mask.any()):
            mask[self._stop_ids] = True
        if not mask.any():
            raise self._dead_end()
        return mask

    def _consume(self, token: int) -> None:
        if self._written or self._first is None or token not in self._vocabulary.first_spellings:
            self._matcher.consume_token(token)
        else:  # other tokens spell what it adds as the first one
            self._matcher.consume_tokens(self._vocabulary.first_spellings[token])
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise self._error()

    def _error(self, matcher: LLMatcher | None = None) -> InvalidRequestError:
        reason = ((matcher or self._matcher).get_error().splitlines() or ["it can't go on"])[0]
        if reason.startswith(DEAD_END):
            return self._dead_end()
        return InvalidRequestError(f"{self._field}: it became too complex for this text ({reason}); simplify it")

    def _dead_end(self) -> InvalidRequestError:
        return InvalidRequestError(f"{self._field}: no token of the model goes on with this text; allow another one")
