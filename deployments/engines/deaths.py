"""Deaths of processes under a request: how many it may survive, and why a replica died."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from starlette.types import Scope

from deployments.ray_internals import actors

_log = logging.getLogger("ray.serve")

RETRIES = 1
"""Retries of a request after a process died while serving it. A fatal request thus kills at most two processes."""

RETRIED_HEADER = b"x-request-retried"
"""Header from the proxy to an ingress: the retry was spent when another ingress died."""

GIVEN_UP = (
    "service: two processes ended while they served this request, so it is not tried again; if it is sent again,"
    " change it first, for it may be what ends them"
)
NO_RETRY = {"x-should-retry": "false"}
"""Header that stops OpenAI's clients from retrying after a 500, as they do by default."""

_VERDICT_SECONDS = 20.0
"""Maximum wait for the cause of a death. Ray reports a lost node only after missed heartbeats."""

_POLL_SECONDS = 0.5


def retries_left(scope: Scope) -> int:
    """Retries that the request of ``scope`` still has."""
    return RETRIES - any(name == RETRIED_HEADER for name, _ in scope["headers"])


async def died_with_its_node(error: BaseException) -> bool:
    """Whether the replica that ``error`` is about died with its node, which no call can cause.

    Waits until the cluster knows the cause of death; returns False if it never does.
    """
    actor: str | None = getattr(error, "actor_id", None)
    end = time.monotonic() + _VERDICT_SECONDS
    while actor is not None and time.monotonic() < end:
        try:
            known: dict[str, Any] = await asyncio.to_thread(actors, actor)
        except Exception as failure:  # any failure means that the cause is unknown
            _log.warning("the cluster does not say why actor %s ended (%s)", actor, type(failure).__name__)
            return False
        if not known or known["State"] == "DEAD":
            return bool(known) and _reason(known["DeathCause"]) == "NODE_DIED"
        await asyncio.sleep(_POLL_SECONDS)
    return False


def _reason(cause: Any) -> str:
    context = cause.actor_died_error_context
    return str(context.Reason.Name(context.reason))
