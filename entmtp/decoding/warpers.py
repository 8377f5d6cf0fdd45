"""The distribution that a request's tokens are drawn from: the model's own, filtered by the request's parameters.

At every node of a step's trees at once. Order and meaning are those of transformers' logits warpers: temperature,
top-k, top-p, min-p.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from entmtp.settings import SamplingParams

CANDIDATES = 1024
"""Likeliest tokens that are ranked at first on a CPU, where sorting a vocabulary takes longer than a small model."""


_COLDEST = 1e-4
"""Of temperatures above 0: the likeliest token has all the mass at it, and logits over less could overflow."""


@dataclass(frozen=True)
class Filters:
    """Of rows of logits.

    Attributes:
        temperature, top_k, top_p, min_p: ``[rows, 1]``; a ``top_k`` of the vocabulary's size and an infinite ``top_p``
            filter nothing.
        ranked: tokens that a row's filters rank at least, the same for all; 0 where none does.
    """

    temperature: torch.Tensor
    top_k: torch.Tensor
    top_p: torch.Tensor
    min_p: torch.Tensor
    ranked: int

    @classmethod
    def of(cls, params: Sequence[SamplingParams], vocab_size: int, device: torch.device) -> Filters:
        """One row per request; greedy ones are filtered as if their temperature were 1."""

        def column(values: list[float]) -> torch.Tensor:
            return torch.tensor(values, dtype=torch.float32, device=device)[:, None]

        top_k = [min(one.top_k or vocab_size, vocab_size) for one in params]
        fewest = max((count for count in top_k if count < vocab_size), default=0)
        if any(one.top_p < 1 for one in params):
            fewest = max(fewest, CANDIDATES)
        return cls(
            temperature=column([max(one.temperature, _COLDEST) if one.temperature else 1.0 for one in params]),
            top_k=column([float(count) for count in top_k]).long(),
            # The mass of everything is not exactly 1.
            top_p=column([one.top_p if one.top_p < 1 else math.inf for one in params]),
            min_p=column([one.min_p for one in params]),
            ranked=min(fewest, vocab_size) if device.type == "cpu" or not fewest else vocab_size,
        )

    def repeated(self, times: int) -> Filters:
        """Each row so many times."""
        rows = (self.temperature, self.top_k, self.top_p, self.min_p)
        temperature, top_k, top_p, min_p = (each.repeat_interleave(times, dim=0) for each in rows)
        return Filters(temperature, top_k, top_p, min_p, self.ranked)


def target(logits: torch.Tensor, filters: Filters) -> torch.Tensor:
    """Probabilities ``[rows, vocab_size]`` in float32, exactly 0 where a token is filtered out."""
    scaled = logits.float() / filters.temperature
    least = scaled.amax(-1, keepdim=True) + filters.min_p.log()
    if filters.ranked:
        least = torch.maximum(least, _least_ranked(scaled, filters, filters.ranked))
    return scaled.masked_fill(scaled < least, -math.inf).softmax(-1)


def _least_ranked(scaled: torch.Tensor, filters: Filters, count: int) -> torch.Tensor:
    """The smallest value ``[rows, 1]`` that passes top-k and top-p; equal ones pass together."""
    vocab_size = scaled.shape[-1]
    values = scaled.topk(count, dim=-1).values
    in_top_k = torch.arange(count, device=scaled.device) < filters.top_k
    whole = filters.top_k == vocab_size
    total_in_top_k = values.masked_fill(~in_top_k, -math.inf).logsumexp(-1, keepdim=True)
    total = torch.where(whole, scaled.logsumexp(-1, keepdim=True), total_in_top_k)
    chances = (values - total).exp()
    kept = in_top_k & (chances.cumsum(-1) - chances < filters.top_p)
    unfiltered = whole & (filters.top_p == math.inf)
    if count < vocab_size and bool((kept[:, -1:] & whole & ~unfiltered).any()):
        return _least_ranked(scaled, filters, vocab_size)
    # The likeliest passes in any case, also a top_p that is 0 in float32.
    least = values.gather(-1, (kept.sum(-1, keepdim=True) - 1).clamp(min=0))
    return least.masked_fill(unfiltered, -math.inf)
