"""Acceptance of one request in vLLM's shape, ``metrics.speculative_decoding``, for tools that read vLLM's responses.

vLLM (0.29 and later, ``--per-request-spec-decode-metrics summary``) drafts a chain in each step, this service a tree. A
step's accepted tokens are a path of it, so the histogram means the same; the drafted tokens are all nodes of the trees,
so ``draft_acceptance_rate`` is lower than a chain's of the same depth.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from pydantic import BaseModel, Field

from deployments.protocol.messages import Account
from deployments.protocol.responses import Answer


class SpeculativeDecoding(BaseModel):
    """How the steps of one answer went."""

    mean_acceptance_length: float = Field(description="tokens per step, with the model's own: 1 + accepted / steps")
    draft_acceptance_rate: float = Field(description="accepted draft tokens per drafted one")
    acceptance_histogram: list[int] = Field(description="at index j the steps that accepted exactly j draft tokens")
    num_spec_steps: int = Field(description="verification steps")
    num_accepted_draft_tokens: int
    num_draft_tokens: int = Field(description="nodes of all trees")
    num_spec_tokens: int = Field(description="the most that a step could accept: the depth of the deepest tree")

    @classmethod
    def of(cls, account: Account) -> SpeculativeDecoding:
        """Summary of an answer for which tokens were drafted."""
        kept = [account.steps, *account.accepted_by_depth]
        kept += [0] * (account.deepest + 2 - len(kept))
        return cls(
            mean_acceptance_length=1 + account.accepted / account.steps,
            draft_acceptance_rate=account.accepted / account.drafted,
            acceptance_histogram=[some - more for some, more in pairwise(kept)],
            num_spec_steps=account.steps,
            num_accepted_draft_tokens=account.accepted,
            num_draft_tokens=account.drafted,
            num_spec_tokens=account.deepest,
        )


class RequestMetrics(BaseModel):
    """vLLM's object ``metrics`` of a response."""

    speculative_decoding: SpeculativeDecoding


def metrics_of(answers: Sequence[Answer]) -> dict[str, Any] | None:
    """JSON of :class:`RequestMetrics`; None for several answers, as in vLLM, and where nothing was drafted."""
    account = answers[0].account
    if len(answers) > 1 or account is None or not account.drafted:
        return None
    return RequestMetrics(speculative_decoding=SpeculativeDecoding.of(account)).model_dump()
