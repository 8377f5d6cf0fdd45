"""Log-probabilities of a prompt in vLLM's format, ``prompt_logprobs``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from entmtp.decoding.detokenizer import Detokenizer
from entmtp.decoding.outputs import PromptLogprobs


def prompt_logprobs_of(
    detokenizer: Detokenizer, prompt: Sequence[int], scores: Sequence[PromptLogprobs], count: int
) -> list[dict[str, Any] | None]:
    """One entry per token of the ``prompt``: null for the first, which nothing comes before, then one by token id.

    An entry has the token itself and the ``count`` likeliest tokens at its position, each with its rank.
    """
    entries: list[dict[str, Any] | None] = [None]
    for token, score in zip(prompt[1:], scores, strict=True):
        likeliest = {id: (logprob, rank) for rank, (id, logprob) in enumerate(score.top[:count], start=1)}
        each = {token: (score.chosen, score.rank)} | likeliest
        entries.append({str(id): _entry(detokenizer, id, *one) for id, one in each.items()})
    return entries


def _entry(detokenizer: Detokenizer, token: int, logprob: float, rank: int) -> dict[str, Any]:
    text = detokenizer.spelling(token).decode("utf-8", "replace") or detokenizer.name(token)
    return {"logprob": logprob, "rank": rank, "decoded_token": text}
