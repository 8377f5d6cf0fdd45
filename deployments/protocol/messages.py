"""What an ingress and an engine's replicas say to each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from entmtp.decoding.measure_cost import PARTS
from entmtp.decoding.outputs import Completion, FinishReason, TokenLogprobs
from entmtp.loading import MethodSpec
from entmtp.settings import SamplingParams


@dataclass(frozen=True)
class Call:
    """One answer to one prompt.

    Attributes:
        id: the HTTP request's, then the numbers of the prompt and of the answer.
        prompt: token ids.
        params: always with a seed, so that another replica can write the same text.
        number: which of several answers to the prompt.
        prompt_number: which of the body's prompts; it and ``number`` choose the seed's random stream.
        cache_salt: whose earlier texts the prompt may begin with.
        continues_text: whether the answer's text goes on from the prompt's, as in /v1/completions.
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
        """That it may take to read and write, at most."""
        return len(self.prompt) + self.params.max_tokens


@dataclass(frozen=True)
class Account:
    """How an answer's steps went; what the extension of ``usage`` tells.

    Attributes:
        method, task: that it was written with; `user_config` may have changed what the engine began with.
        deepest: levels of the deepest tree of a step.
        part_ms: of all steps together, by part.
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
    def of(cls, done: Completion, method: MethodSpec) -> Account:
        """Of a finished completion."""
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
class Placed:
    """A replica has taken a call: its engine sees it next."""


@dataclass(frozen=True)
class Delta:
    """Tokens that a step added to answer ``index`` of a request; ``account`` comes with the last."""

    index: int
    tokens: list[int]
    text: str
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    account: Account | None = None


@dataclass(frozen=True)
class Failure:
    """The end of a call that was not answered.

    'invalid': the request is at fault; 'full': try again later; 'failed': no replica can write this text;
    'unavailable': the replica never took the call; 'dead': the replica ended while it ran the call; 'fatal': so did one
    replica too many.
    """

    kind: Literal["invalid", "full", "failed", "unavailable", "dead", "fatal"]
    message: str
