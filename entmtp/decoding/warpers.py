"""Target distribution of each request: the model's own, filtered by the request's parameters.

All nodes of a step's trees are filtered at once. Order and meaning are those of transformers' logits warpers:
temperature, top-k, top-p, min-p.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from entmtp.settings import SamplingParams

CANDIDATES = 1024
"""Likeliest tokens that are ranked at first on a CPU. Sorting a whole vocabulary takes longer than a small model."""

_COLDEST = 1e-4
"""Lower bound of temperatures above 0. The likeliest token has all the mass there, and a lower one could overflow."""


@dataclass(frozen=True)
class Filters:
    """Filters of several rows of logits.

    Attributes:
        temperature, top_k, top_p, min_p: ``[rows, 1]``; a ``top_k`` of the vocabulary's size and an infinite ``top_p``
            filter nothing.
        ranked: likeliest tokens that are ranked at first, the same number for all rows; 0 if no filter ranks.
    """

    temperature: torch.Tensor
    top_k: torch.Tensor
    top_p: torch.Tensor
    min_p: torch.Tensor
    ranked: int

    @classmethod
    def of(cls, params: Sequence[SamplingParams], vocab_size: int, device: torch.device) -> Filters:
        """Filters of requests, one row each; greedy ones are filtered as if their temperature were 1."""

        def column(values: list[float]) -> torch.Tensor:
            return torch.tensor(values, dtype=torch.float32, device=device)[:, None]

        top_k = [min(one.top_k or vocab_size, vocab_size) for one in params]
        fewest = max((count for count in top_k if count < vocab_size), default=0)
        if any(one.top_p < 1 for one in params):
            fewest = max(fewest, CANDIDATES)
        return cls(
            temperature=column([max(one.temperature, _COLDEST) if one.temperature else 1.0 for one in params]),
            top_k=column([float(count) for count in top_k]).long(),
            # Infinite, since the total mass is not exactly 1.
            top_p=column([one.top_p if one.top_p < 1 else math.inf for one in params]),
            min_p=column([one.min_p for one in params]),
            ranked=min(fewest, vocab_size) if device.type == "cpu" or not fewest else vocab_size,
        )

    def repeat(self, times: int) -> Filters:
        """Filters with each row repeated ``times`` times."""
        rows = (self.temperature, self.top_k, self.top_p, self.min_p)
        temperature, top_k, top_p, min_p = (each.repeat_interleave(times, dim=0) for each in rows)
        return Filters(temperature, top_k, top_p, min_p, self.ranked)


def target_probs(logits: torch.Tensor, filters: Filters) -> torch.Tensor:
    """Probabilities ``[rows, vocab_size]`` in float32, exactly 0 where a token is filtered out."""
    scaled = logits.float() / filters.temperature
    threshold = scaled.amax(-1, keepdim=True) + filters.min_p.log()
    if filters.ranked:
        threshold = torch.maximum(threshold, _rank_threshold(scaled, filters, filters.ranked))
    return scaled.masked_fill(scaled < threshold, -math.inf).softmax(-1)


def _rank_threshold(scaled: torch.Tensor, filters: Filters, count: int) -> torch.Tensor:
    """Smallest logit ``[rows, 1]`` that passes top-k and top-p; equal ones pass together."""
    vocab_size = scaled.shape[-1]
    values = scaled.topk(count, dim=-1).values
    in_top_k = torch.arange(count, device=scaled.device) < filters.top_k
    no_top_k = filters.top_k == vocab_size
    total_in_top_k = values.masked_fill(~in_top_k, -math.inf).logsumexp(-1, keepdim=True)
    total = torch.where(no_top_k, scaled.logsumexp(-1, keepdim=True), total_in_top_k)
    probs = (values - total).exp()
    passes = in_top_k & (probs.cumsum(-1) - probs < filters.top_p)
    unfiltered = no_top_k & (filters.top_p == math.inf)
    if count < vocab_size and bool((passes[:, -1:] & no_top_k & ~unfiltered).any()):
        return _rank_threshold(scaled, filters, vocab_size)
    # The likeliest token always passes, even if top_p rounds to 0 in float32.
    threshold = values.gather(-1, (passes.sum(-1, keepdim=True) - 1).clamp(min=0))
    return threshold.masked_fill(unfiltered, -math.inf)
