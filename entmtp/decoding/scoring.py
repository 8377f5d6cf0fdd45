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
    log_probs = logits.log_softmax(-1)
    own = log_probs.gather(1, torch.tensor(tokens, device=logits.device)[:, None])
    ranks = 1 + (log_probs > own).sum(-1)
    top = log_probs.topk(count, dim=-1)
    each = zip(own[:, 0].tolist(), top.indices.tolist(), top.values.tolist(), ranks.tolist(), strict=True)
    for chosen, ids, values, rank in each:
        yield PromptLogprobs(chosen, list(zip(ids, values, strict=True)), rank)
