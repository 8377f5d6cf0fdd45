"""How many deaths of processes one request may see, and why a replica died as far as the cluster knows."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from starlette.types import Scope

from deployments.ray_internals import actors

_log = logging.getLogger("ray.serve")

RETRIES = 1
"""Processes that may end while they serve a request before it is given up: one that ends them ends two at most."""

RETRIED_HEADER = b"x-request-retried"
"""The proxy tells an ingress so that the request's second chance has gone, with another ingress."""

GIVEN_UP = (
    "service: two processes ended while they served this request, so it is not tried again; if it is sent again,"
    " change it first, for it may be what ends them"
)
NO_RETRY = {"x-should-retry": "false"}
"""OpenAI's clients send a request again by themselves after a 500, unless this header says that it is of no use."""

_VERDICT_SECONDS = 20.0
"""A process that ends is reported at once; that a whole node is gone shows only when it misses its heartbeats."""

_POLL_SECONDS = 0.5


def retries(scope: Scope) -> int:
    """Processes that may still end while they serve the request of ``scope``."""
    return RETRIES - any(name == RETRIED_HEADER for name, _ in scope["headers"])


async def died_with_its_node(error: BaseException) -> bool:
    """Whether the replica behind ``error`` went down with its node, which no call brings about.

    Waits until the cluster knows why the replica ended, and answers False where it never does.
    """
    actor: str | None = getattr(error, "actor_id", None)
    end = time.monotonic() + _VERDICT_SECONDS
    while actor is not None and time.monotonic() < end:
        try:
            known: dict[str, Any] = await asyncio.to_thread(actors, actor)
        except Exception as failure:  # whatever it is, the answer is that nothing is known
            _log.warning("the cluster does not say why actor %s ended (%s)", actor, type(failure).__name__)
            return False
        if not known or known["State"] == "DEAD":
            return bool(known) and _reason(known["DeathCause"]) == "NODE_DIED"
        await asyncio.sleep(_POLL_SECONDS)
    return False


def _reason(cause: Any) -> str:
    context = cause.actor_died_error_context
    return str(context.Reason.Name(context.reason))
