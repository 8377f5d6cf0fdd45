"""What an engine tells: of a request with each step, and of itself."""

from __future__ import annotations

from dataclasses import dataclass

from entmtp.decoding.completion import Completion, FinishReason
from entmtp.decoding.logprobs import TokenLogprobs


@dataclass(frozen=True)
class Progress:
    """What a step added to a request.

    Attributes:
        tokens, text, logprobs: new ones; text may lag behind the tokens.
        finish_reason: why the request ended with this, if it did.
        completion: the request as a whole; the engine may have gone on filling it since.
    """

    id: str
    tokens: list[int]
    text: str
    logprobs: list[TokenLogprobs]
    finish_reason: FinishReason | None
    completion: Completion


@dataclass(frozen=True)
class EngineStatistics:
    """How an engine fares.

    Attributes:
        running, waiting: requests.
        outstanding_tokens: that these requests may still take to read and write, at most.
        cache_tokens, cache_capacity: tokens of running requests in the cache, and those that it has room for.
        steps, tokens: since the start.
        goodput, goodput_foretold: tokens per millisecond of the last steps, as seen and as the policy expected; 0 and
            None before the first, None too where the policy does not say.
    """

    running: int
    waiting: int
    outstanding_tokens: int
    cache_tokens: int
    cache_capacity: int
    steps: int
    tokens: int
    goodput: float
    goodput_foretold: float | None
