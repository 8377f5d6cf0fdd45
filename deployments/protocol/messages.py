"""Messages between an ingress and the replicas of an engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from entmtp.decoding.measure_cost import PARTS
from entmtp.decoding.outputs import Completion, FinishReason, TokenLogprobs
from entmtp.loading import MethodSpec
from entmtp.settings import SamplingParams


@dataclass(frozen=True)
class GenerateCall:
    """Request to an engine for one answer to one prompt.

    Attributes:
        id: id of the HTTP request, followed by the numbers of the prompt and of the answer.
        prompt: token ids.
        params: sampling parameters, always with a seed, so that another replica can generate the same text.
        number: index of the answer among several answers to the prompt.
        max_nodes: maximum number of nodes of a step's tree; None: no limit of the request.
        prompt_number: index of the prompt in the body; it and ``number`` select the seed's random stream.
        cache_salt: only prefixes cached with the same salt are reused.
        continues_text: whether the answer continues the prompt's text, as in /v1/completions.
    """

    id: str
    prompt: Sequence[int]
    params: SamplingParams
    number: int = 0
    max_nodes: int | None = None
    prompt_number: int = 0
    cache_salt: str = ""
    continues_text: bool = False

    @property
    def tokens(self) -> int:
        """Maximum number of prompt and new tokens together."""
        return len(self.prompt) + self.params.max_tokens


@dataclass(frozen=True)
class SpeculationStats:
    """Statistics of an answer's steps, for the ``speculation`` extension of ``usage``.

    Attributes:
        method: method that generated the answer; `user_config` may have changed it since the engine's start.
        task: task of the tree bank that was used.
        deepest: depth of the deepest tree of a step.
        part_ms: total time of all steps, by part of a step.
    """

    method: str
    task: str
    steps: int
    drafted: int
    accepted: int
    accepted_by_depth: list[int]
    deepest: int
    part_ms: dict[str, float]
    reused_tokens: int
    waiting_ms: float
    first_token_ms: float

    @classmethod
    def of(cls, done: Completion, method: MethodSpec) -> SpeculationStats:
        """Collect the statistics of a finished completion."""
        return cls(
            method=method.name,
            task=method.task,
            steps=len(done.steps),
            drafted=done.drafted,
            accepted=done.accepted,
            accepted_by_depth=done.accepted_by_depth,
            deepest=max((step.topology.max_depth for step in done.steps), default=0),
            part_ms={part: 1e3 * done.part_seconds(part) for part in PARTS},
            reused_tokens=done.reused_tokens,
            waiting_ms=1e3 * done.waiting_seconds,
            first_token_ms=1e3 * done.first_token_seconds,
        )


@dataclass(frozen=True)
class Accepted:
    """First message of a replica that has accepted a call."""


@dataclass(frozen=True)
class TokenDelta:
    """New tokens of a step for answer ``index`` of a request; the last delta has the ``stats``."""

    index: int
    tokens: list[int]
    text: str
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stats: SpeculationStats | None = None


@dataclass
class Answer:
    """Accumulated deltas of one answer."""

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stats: SpeculationStats | None = None

    def append(self, delta: TokenDelta) -> None:
        """Add the next delta."""
        self.text += delta.text
        self.tokens += delta.tokens
        self.logprobs += delta.logprobs
        self.finish_reason, self.stats = delta.finish_reason, delta.stats


@dataclass(frozen=True)
class Failure:
    """End of a call without a complete answer.

    Kinds: 'invalid' (the request is wrong), 'full' (try again later), 'failed' (no replica can generate this text),
    'unavailable' (the replica never accepted the call), 'dead' (the replica died while it ran the call), 'fatal' (more
    replicas died than a call may kill).
    """

    kind: Literal["invalid", "full", "failed", "unavailable", "dead", "fatal"]
    message: str
