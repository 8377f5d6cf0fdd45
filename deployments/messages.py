"""What an ingress and an engine's replicas say to each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from entmtp.decoding.completion import Completion, FinishReason
from entmtp.decoding.logprobs import TokenLogprobs
from entmtp.decoding.measure import PARTS
from entmtp.session import Method
from entmtp.settings import SamplingParams


@dataclass(frozen=True)
class Call:
    """One prompt, to be answered ``n`` times.

    Attributes:
        id: of the HTTP request; its prompts count up behind it.
        prompt: token ids.
        params: always with a seed, so that another replica can write the same text.
    """

    id: str
    prompt: Sequence[int]
    params: SamplingParams
    n: int = 1
    max_nodes: int | None = None

    @property
    def tokens(self) -> int:
        """That it may take to read and write, at most."""
        return len(self.prompt) + self.n * self.params.max_tokens


@dataclass(frozen=True)
class Account:
    """How an answer's steps went; what the extension of ``usage`` tells.

    Attributes:
        method, task: that it was written with; `user_config` may have changed what the engine began with.
        part_ms: of all steps together, by part.
    """

    method: str
    task: str
    steps: int
    drafted: int
    accepted: int
    accepted_by_depth: list[int]
    part_ms: dict[str, float]
    reused_tokens: int
    waiting_ms: float
    first_token_ms: float

    @classmethod
    def of(cls, done: Completion, method: Method) -> Account:
        """Of a finished completion."""
        return cls(
            method=method.name,
            task=method.task,
            steps=len(done.steps),
            drafted=done.drafted,
            accepted=done.accepted,
            accepted_by_depth=done.accepted_by_depth,
            part_ms={part: 1e3 * done.part_seconds(part) for part in PARTS},
            reused_tokens=done.reused_tokens,
            waiting_ms=1e3 * done.waiting_seconds,
            first_token_ms=1e3 * done.first_token_seconds,
        )


@dataclass(frozen=True)
class Delta:
    """What a step added to answer number ``index`` of a call; ``account`` comes with the last."""

    index: int
    tokens: list[int]
    text: str
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    account: Account | None = None


@dataclass(frozen=True)
class Failure:
    """Why a replica does not go on with a call.

    'invalid': the request is at fault; 'full': try again later; 'failed': this text can't be written; 'dead': this
    replica can't go on but another may.
    """

    kind: Literal["invalid", "full", "failed", "dead"]
    message: str
