"""Log-probabilities of a prompt's own tokens, from the states that reading it makes anyway."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from entmtp.decoding.outputs import PromptLogprobs
from entmtp.models.backbone import LOGITS_CHUNK, Backbone


@torch.inference_mode()
def score_prompt(
    backbone: Backbone, hidden: torch.Tensor, prompt: Sequence[int], begin: int, first: int, count: int
) -> Iterator[PromptLogprobs]:
    """Yield the log-probabilities of prompt tokens, each given the tokens before it.

    A few positions' logits are in memory at a time, however long the prompt.

    Args:
        hidden: decoder states ``[n, hidden_size]`` of the prompt tokens from ``begin`` on.
        first: position of the first token that is scored, at least 1.
        count: number of likeliest tokens to report with each.
    """
    end = min(begin + len(hidden), len(prompt) - 1)
    for at in range(max(begin, first - 1), end, LOGITS_CHUNK):
        stop = min(at + LOGITS_CHUNK, end)
        logits = backbone.logits(hidden[at - begin : stop - begin]).float()
        yield from _score(logits, prompt[at + 1 : stop + 1], count)


def _score(logits: torch.Tensor, tokens: Sequence[int], count: int) -> Iterator[PromptLogprobs]:
    """Log-probabilities of ``tokens [n]`` after the positions of ``logits [n, vocab_size]``."""
    total = logits.logsumexp(-1, keepdim=True)
    own = logits.gather(1, torch.tensor(tokens, device=logits.device)[:, None])
    ranks = 1 + (logits > own).sum(-1)
    top = logits.topk(count, dim=-1)
    chosen, values = (own - total)[:, 0].tolist(), (top.values - total).tolist()
    for one, ids, each, rank in zip(chosen, top.indices.tolist(), values, ranks.tolist(), strict=True):
        yield PromptLogprobs(one, list(zip(ids, each, strict=True)), rank)
