"""A call to an engine that outlives the replica that serves it.

A seed and a prompt decide a text (see :mod:`entmtp.decoding.sampling`), so when a replica dies another one writes the
same answer again, up to rounding, and what the client has already is left out.

The same determinism makes a second try dangerous: a call that ended its replica is likely to end the next one too. From
outside, the call that a replica died of and those that only ran alongside look alike. So every call that ran there is
tried once more and no more than once: one call ends two replicas at most, and the others survive one death. A call that
has seen two is given up, innocent or not, because only the death of a third replica could tell. Deaths that are known
to be no call's fault do not count (:mod:`deployments.engines.deaths`): a node that is drained or lost takes its
replicas along. A replica that had ended before it took the call proves nothing either.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

from grpc.aio import AioRpcError
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError

from deployments.engines.deaths import GIVEN_UP, RETRIES, died_with_its_node
from deployments.protocol.messages import Call, Delta, Failure, Placed
from deployments.ray_internals import generate_request_id, set_request_context

_log = logging.getLogger("ray.serve")

_PAUSE_SECONDS = 0.2
_ROOM_SECONDS = 0.25
"""A call that may wait for room asks for it so often."""


class TextDiffersError(Exception):
    """Another replica does not write what the client has been sent already."""


class _NotPlacedError(Exception):
    """The replica had ended before it took the call."""


class _DiedError(Exception):
    """The replica ended while it ran the call, and could say so itself."""


class _FullError(Exception):
    """The engine has as many calls as may wait."""


_NOT_PLACED = _NotPlacedError, ReplicaUnavailableError
_DIED = _DiedError, RayActorError, AioRpcError
"""Serve's router tries replica after replica until one has taken a call: what it raises later is of a call that ran."""

_FULL = _FullError, BackPressureError

_DIFFERS = (
    "service: the replica died, and another one's text differs from what it sent, which rounding can bring about in 16"
    " bits or on unequal machines (in float32 on equal ones texts are the same); send the request again"
)

_PASSED_ON: dict[str, type[Exception]] = {"unavailable": _NotPlacedError, "dead": _DiedError, "full": _FullError}
"""Failures of a replica after which another one may be tried, or the same one later."""


@dataclass
class _Answer:
    """An answer's parts that went out, and how far the present attempt has come."""

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


class _Deaths:
    """Deaths of replicas that ran one call."""

    def __init__(self, call: Call, allowed: int) -> None:
        self._call, self._allowed = call, allowed
        self._seen: list[BaseException] = []
        self.any = False

    async def too_many(self, error: BaseException) -> bool:
        """Takes note of one more; True if the call may have brought about more than are allowed."""
        self.any = True
        self._seen.append(error)
        _log.warning("request %s: a replica died while it ran this (%s)", self._call.id, type(error).__name__)
        if len(self._seen) > self._allowed:
            known = await asyncio.gather(*map(died_with_its_node, self._seen))
            self._seen = [death for death, blameless in zip(self._seen, known, strict=True) if not blameless]
        return len(self._seen) > self._allowed


async def relayed(
    handle: Any, call: Call, attempts: int, retries: int = RETRIES, refused: Callable[[], bool] = lambda: False
) -> AsyncGenerator[Placed | Delta | Failure]:
    """The answer of a replica that ``handle`` leads to; a failure ends it.

    Args:
        attempts: replicas that may be lost, for whatever reason, before the call is given up.
        retries: replicas that may die of the call before it is given up.
        refused: hears that the engine is full; says whether the call waits for room. After a death it always does.
    """
    answer, deaths, attempt = _Answer(), _Deaths(call, retries), 0
    while attempt < attempts:
        answer.begin_again()
        try:
            async with aclosing(_attempt(handle, call, attempt)) as stream:
                async for item in stream:
                    if isinstance(item, Failure):
                        if (error := _PASSED_ON.get(item.kind)) is not None:
                            raise error
                        yield item
                        return
                    if isinstance(item, Placed):
                        yield item
                    elif (fresh := answer.news(item)) is not None:
                        yield fresh
            if answer.ended:
                return
            raise _DiedError
        except _FULL:
            # Asked after a death, it would no longer count this call as taken, and refuse the request's other calls.
            if not (deaths.any or refused()):
                yield Failure("full", "service: too many requests wait; try again later")
                return
            await asyncio.sleep(_ROOM_SECONDS)
            continue
        except _DIED as error:
            if await deaths.too_many(error):
                yield Failure("fatal", GIVEN_UP)
                return
        except _NOT_PLACED:
            pass
        except DeploymentUnavailableError:
            break
        except TextDiffersError:
            yield Failure("dead", _DIFFERS)
            return
        await asyncio.sleep(_PAUSE_SECONDS * attempt)
        attempt += 1
    yield Failure("dead", "service: no replica of this engine could be reached; try again later")


async def _attempt(handle: Any, call: Call, number: int) -> AsyncGenerator[Placed | Delta | Failure]:
    """One replica's answer; closed, the replica hears of it."""
    # Serve's router knows its pending requests by this id, and calls for one HTTP request would share it: of two that
    # wait at once it would send off one, and leave the other waiting for ever.
    set_request_context(_internal_request_id=generate_request_id())
    response = handle.options(stream=True).generate.remote(replace(call, id=f"{call.id}.{number}"))
    try:
        async for item in response:
            yield item
    finally:
        response.cancel()
