"""Messages between an ingress and the replicas of an engine: the engine's own requests and outputs, and failures."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Literal

from entmtp.decoding.outputs import RequestOutput
from entmtp.decoding.request import Request


@dataclass(frozen=True)
class Failure:
    """End of a call without a complete answer.

    Kinds: 'invalid' (the request is wrong), 'full' (try again later), 'late' (as 'full', but for this call's deadline
    or priority), 'failed' (no replica can generate this text), 'unavailable' (the replica never accepted the call),
    'dead' (the replica died while it ran the call), 'fatal' (more replicas died than a call may kill).

    Attributes:
        retry_seconds: predicted time after which a 'full' or 'late' call would be accepted; None if it is unknown.
    """

    kind: Literal["invalid", "full", "late", "failed", "unavailable", "dead", "fatal"]
    message: str
    retry_seconds: int | None = None


CallStream = AsyncGenerator[RequestOutput | Failure]
"""Answer to a call. The first output is empty: it says that a replica has accepted the call. A failure is the last."""


def prompt_tokens(requests: Sequence[Request]) -> int:
    """Number of prompt tokens of a body's requests; each prompt counts once, whatever the number of its answers."""
    return sum(len(one.prompt) for one in requests if one.answer_index == 0)
