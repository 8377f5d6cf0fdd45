"""Acceptance of one request in vLLM's format, ``metrics.speculative_decoding``, for tools that read vLLM's responses.

vLLM (0.29 and later, ``--per-request-spec-decode-metrics summary``) drafts a chain in each step, this service a tree.
The accepted tokens of a step are a path of the tree, so the histogram has the same meaning. The drafted tokens are all
nodes of the trees, so ``draft_acceptance_rate`` is lower than for a chain of the same depth.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from pydantic import BaseModel, Field

from entmtp.decoding.outputs import RequestOutput, RequestStats


class SpeculativeDecoding(BaseModel):
    """vLLM's statistics of one answer's steps."""

    mean_acceptance_length: float = Field(description="tokens per step, with the model's own: 1 + accepted / steps")
    draft_acceptance_rate: float = Field(description="accepted draft tokens per drafted one")
    acceptance_histogram: list[int] = Field(description="at index j the steps that accepted exactly j draft tokens")
    num_spec_steps: int = Field(description="verification steps")
    num_accepted_draft_tokens: int
    num_draft_tokens: int = Field(description="nodes of all trees")
    num_spec_tokens: int = Field(description="the most that a step could accept: the depth of the deepest tree")

    @classmethod
    def of(cls, stats: RequestStats) -> SpeculativeDecoding:
        """Summarise an answer for which tokens were drafted."""
        at_least = [stats.steps, *stats.accepted_by_depth]  # steps that accepted at least j tokens, by j
        at_least += [0] * (stats.deepest + 2 - len(at_least))
        return cls(
            mean_acceptance_length=1 + stats.accepted / stats.steps,
            draft_acceptance_rate=stats.accepted / stats.drafted,
            acceptance_histogram=[count - more for count, more in pairwise(at_least)],
            num_spec_steps=stats.steps,
            num_accepted_draft_tokens=stats.accepted,
            num_draft_tokens=stats.drafted,
            num_spec_tokens=stats.deepest,
        )


class RequestMetrics(BaseModel):
    """vLLM's object ``metrics`` of a response."""

    speculative_decoding: SpeculativeDecoding


def metrics_of(answers: Sequence[RequestOutput]) -> dict[str, Any] | None:
    """JSON of :class:`RequestMetrics`; None for several answers, as in vLLM, and if nothing was drafted."""
    stats = answers[0].stats
    if len(answers) > 1 or stats is None or not stats.drafted:
        return None
    return RequestMetrics(speculative_decoding=SpeculativeDecoding.of(stats)).model_dump()
