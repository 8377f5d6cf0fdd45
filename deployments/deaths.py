"""Why a replica died, as far as the cluster knows."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from ray._private.state import actors

_log = logging.getLogger("ray.serve")

_VERDICT_SECONDS = 20.0
"""A process that ends is reported at once; that a whole node is gone shows only when it misses its heartbeats."""

_POLL_SECONDS = 0.5


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
