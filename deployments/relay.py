"""A call to an engine that outlives the replicas that serve it.

A seed and a prompt decide a text (see :mod:`entmtp.decoding.sampling`), so when a replica dies another one writes the
same answer again, and what the client has already is left out.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

from grpc.aio import AioRpcError
from ray.exceptions import RayActorError
from ray.serve._private.utils import generate_request_id
from ray.serve.context import _set_request_context
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError

from deployments.messages import Call, Delta, Failure

_log = logging.getLogger("ray.serve")
_GONE = RayActorError, ReplicaUnavailableError, AioRpcError
"""What Ray raises for a replica that died, or that can't be reached; gRPC's own where a stream broke in another way."""

_PAUSE_SECONDS = 0.2


class TextDiffersError(Exception):
    """Another replica does not write what the client has been sent already."""


@dataclass
class _Answer:
    """One answer: what went out of it, and how far the present attempt has come."""

    tokens: list[int] = field(default_factory=list)
    text: str = ""
    ended: bool = False
    at: int = 0
    seen: str = ""

    def begin_again(self) -> None:
        self.at, self.seen = 0, ""

    def news(self, delta: Delta) -> Delta | None:
        """The part of a delta that did not go out yet, if there is any."""
        known = self.tokens[self.at : self.at + len(delta.tokens)]
        if known != delta.tokens[: len(known)]:
            raise TextDiffersError
        self.at += len(delta.tokens)
        self.seen += delta.text
        fresh = replace(
            delta,
            tokens=delta.tokens[len(known) :],
            text=self.seen[len(self.text) :],
            logprobs=delta.logprobs[len(known) :],
        )
        if self.ended or not (fresh.tokens or fresh.text or fresh.finish_reason):
            return None
        self.tokens += fresh.tokens
        self.text += fresh.text
        self.ended = fresh.finish_reason is not None
        return fresh


async def relayed(handle: Any, call: Call, attempts: int) -> AsyncGenerator[Delta | Failure]:
    """What a replica of the engine behind ``handle`` answers; a failure ends it, other replicas having been tried."""
    answers = [_Answer() for _ in range(call.n)]
    for attempt in range(attempts):
        for answer in answers:
            answer.begin_again()
        try:
            async with aclosing(_attempt(handle, call, attempt)) as stream:
                async for item in stream:
                    if isinstance(item, Failure):
                        if item.kind == "dead":
                            break
                        yield item
                        return
                    if (fresh := answers[item.index].news(item)) is not None:
                        yield fresh
            if all(answer.ended for answer in answers):
                return
        except _GONE as error:
            _log.warning("request %s: attempt %d lost its replica (%s)", call.id, attempt + 1, type(error).__name__)
        except BackPressureError:
            yield Failure("full", "service: too many requests wait; try again later")
            return
        except DeploymentUnavailableError:
            break
        except TextDiffersError:
            yield Failure("failed", "service: the replica died, and another one would write another text; ask again")
            return
        await asyncio.sleep(_PAUSE_SECONDS * attempt)
    yield Failure("dead", "service: no replica of this engine could be reached; try again later")


async def _attempt(handle: Any, call: Call, number: int) -> AsyncGenerator[Delta | Failure]:
    """One replica's answer; closed, the replica hears of it."""
    # Serve's router knows its pending requests by this id, and calls for one HTTP request would share it: of two that
    # wait at once it would send off one, and leave the other waiting for ever.
    _set_request_context(_internal_request_id=generate_request_id())
    response = handle.options(stream=True).generate.remote(replace(call, id=f"{call.id}.{number}"))
    try:
        async for item in response:
            yield item
    finally:
        response.cancel()
