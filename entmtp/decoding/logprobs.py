"""What the model itself thought of the tokens that came out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class TokenLogprobs:
    """The model's own log-probabilities at one place, before the request's parameters shaped anything.

    Attributes:
        chosen: of the token that came out.
        top: the likeliest tokens with theirs, likeliest first.
    """

    chosen: float
    top: list[tuple[int, float]]


def logprobs_of(logits: torch.Tensor, tokens: Sequence[int], count: int) -> list[TokenLogprobs]:
    """Of ``tokens [n]`` that were chosen from ``logits [n, vocab_size]``, with the ``count`` likeliest beside each."""
    log_probs = logits.float().log_softmax(-1)
    chosen = log_probs.gather(1, torch.tensor(tokens, device=logits.device)[:, None])[:, 0].tolist()
    top = log_probs.topk(count, dim=-1)
    pairs = [list(zip(*row, strict=True)) for row in zip(top.indices.tolist(), top.values.tolist(), strict=True)]
    return [TokenLogprobs(*each) for each in zip(chosen, pairs, strict=True)]
