"""Failover: a call to an engine survives the death of its replica.

Seed and prompt determine the text (see :mod:`entmtp.decoding.sampling`). When a replica dies, another one therefore
generates the same answer again, up to rounding. The part that the client already has is left out.

For the same reason a retry is dangerous: a call that killed its replica is likely to kill the next one too. The fatal
call cannot be distinguished from the others that ran on that replica. So each of them is retried, but only once: one
call kills at most two replicas, and all others survive one death. A call that has seen two deaths is given up, as only
the death of a third replica could show whether it was the cause.

Two kinds of deaths do not count. A drained or lost node takes its replicas down, which no call can cause
(:mod:`deployments.engines.deaths`). A replica that died before it accepted the call did not die of it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from grpc.aio import AioRpcError
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError

from deployments.engines.deaths import GIVEN_UP, RETRIES, died_with_its_node
from deployments.protocol.messages import CallStream, Failure
from deployments.ray_internals import generate_request_id, set_request_context
from entmtp.decoding.outputs import RequestOutput
from entmtp.decoding.request import Request

_log = logging.getLogger("ray.serve")

_PAUSE_SECONDS = 0.2
_ROOM_SECONDS = 0.25
"""Interval at which a call that waits for room tries again."""


class TextDiffersError(Exception):
    """Another replica generates a text that differs from what was already sent to the client."""


class _NotAcceptedError(Exception):
    """The replica had died before it accepted the call."""


class _DiedError(Exception):
    """The replica died while it ran the call, and could still report it."""


class _FullError(Exception):
    """The call would wait for too long."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


_NOT_ACCEPTED = _NotAcceptedError, ReplicaUnavailableError
_DIED = _DiedError, RayActorError, AioRpcError
"""Errors of a call that was running: Serve's router tries replica after replica until one has accepted the call."""

_FULL = _FullError, BackPressureError

_DIFFERS = (
    "service: the replica died, and another one's text differs from what it sent, which rounding can bring about in 16"
    " bits or on unequal machines (in float32 on equal ones texts are the same); send the request again"
)

_NO_ROOM = Failure("full", "service: too many requests wait; try again later")


class _SentAnswer:
    """The part of an answer that the client has, and the progress of the current attempt.

    Attributes:
        sent: all outputs that were passed on, added up over all attempts.
        attempt: all outputs of the current attempt, added up.
    """

    def __init__(self, call: Request) -> None:
        self.sent, self.attempt = RequestOutput(call.id), RequestOutput(call.id)

    @property
    def finished(self) -> bool:
        return self.sent.finish_reason is not None

    def restart(self) -> None:
        """Begin another attempt, which generates the answer from its first token."""
        self.attempt = RequestOutput(self.sent.id)

    def unsent(self, output: RequestOutput) -> RequestOutput:
        """Return the part of an output that was not sent yet, which may be empty, and count it as sent.

        Raises:
            TextDiffersError: the output differs from what was sent.
        """
        position = len(self.attempt.tokens)
        known = self.sent.tokens[position : position + len(output.tokens)]
        if known != output.tokens[: len(known)]:
            raise TextDiffersError
        self.attempt.add(output)
        if self.finished:
            return RequestOutput(output.id)
        fresh = replace(
            output,
            tokens=output.tokens[len(known) :],
            text=self.attempt.text[len(self.sent.text) :],
            logprobs=output.logprobs[len(known) :],
            prompt_logprobs=[] if self.sent.prompt_logprobs else output.prompt_logprobs,
        )
        self.sent.add(fresh)
        return fresh


class _Deaths:
    """Deaths of replicas that ran one call."""

    def __init__(self, call: Request, allowed: int) -> None:
        self._call, self._allowed = call, allowed
        self._errors: list[BaseException] = []
        self.any = False

    async def exceeded_by(self, error: BaseException) -> bool:
        """Count one more death; True if the call may have caused more deaths than allowed."""
        self.any = True
        self._errors.append(error)
        _log.warning("request %s: a replica died while it ran this (%s)", self._call.id, type(error).__name__)
        if len(self._errors) > self._allowed:
            with_node = await asyncio.gather(*map(died_with_its_node, self._errors))
            self._errors = [death for death, lost in zip(self._errors, with_node, strict=True) if not lost]
        return len(self._errors) > self._allowed


async def stream_with_failover(
    handle: Any,
    call: Request,
    attempts: int,
    retries: int = RETRIES,
    waits_for_room: Callable[[], bool] = lambda: False,
) -> CallStream:
    """Yield the answer of a replica of ``handle``, each part once; a failure ends it.

    Args:
        attempts: replicas that may be lost, for whatever reason, before the call is given up.
        retries: replicas that may die of the call before it is given up.
        waits_for_room: decides, when the engine is full, whether the call waits. After a death it always waits.
    """
    answer, deaths, attempt = _SentAnswer(call), _Deaths(call, retries), 0
    while attempt < attempts:
        answer.restart()
        try:
            async with aclosing(_attempt(handle, call, attempt)) as stream:
                async for item in stream:
                    if isinstance(item, Failure):
                        _raise_for_retry(item)
                        yield item
                        return
                    yield answer.unsent(item)
            if answer.finished:
                return
            raise _DiedError
        except _FULL as error:
            # After a death the callback is not called: it would no longer count this call as accepted, and the
            # request's other calls would be refused.
            if not (deaths.any or waits_for_room()):
                yield error.failure if isinstance(error, _FullError) else _NO_ROOM
                return
            await asyncio.sleep(_ROOM_SECONDS)
            continue
        except _DIED as error:
            if await deaths.exceeded_by(error):
                yield Failure("fatal", GIVEN_UP)
                return
        except _NOT_ACCEPTED:
            pass
        except DeploymentUnavailableError:
            break
        except TextDiffersError:
            yield Failure("dead", _DIFFERS)
            return
        await asyncio.sleep(_PAUSE_SECONDS * attempt)
        attempt += 1
    yield Failure("dead", "service: no replica of this engine could be reached; try again later")


def _raise_for_retry(failure: Failure) -> None:
    """Raise the error of a failure after which another replica may be tried, or the same one later."""
    if failure.kind == "unavailable":
        raise _NotAcceptedError
    if failure.kind == "dead":
        raise _DiedError
    if failure.kind in {"full", "late"}:
        raise _FullError(failure)


async def _attempt(handle: Any, call: Request, number: int) -> CallStream:
    """Yield one replica's answer; closing the generator cancels the call."""
    # Serve's router identifies pending requests by this id, which the calls of one HTTP request would share. Of two
    # calls that wait at once the router would send one, and the other would wait for ever.
    set_request_context(_internal_request_id=generate_request_id())
    response = handle.options(stream=True).generate.remote(replace(call, id=f"{call.id}.{number}"))
    try:
        async for item in response:
            yield item
    finally:
        response.cancel()
