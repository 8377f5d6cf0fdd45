"""Work that is a few long calls: each in a worker of its own on the cluster, as many at once as it holds."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import ray

from entmtp.evaluation.placement import Placement
from jobs.pool import LOOK_SECONDS, alive_nodes, worker_options
from jobs.waiting import Waiting


class Caller:
    """A worker that calls what it is given."""

    def call(self, function: Callable[..., Any], arguments: Sequence[Any]) -> Any:
        """Calls ``function`` with ``arguments``."""
        return function(*arguments)


def call_each(function: Callable[..., Any], calls: Sequence[Sequence[Any]], placement: Placement) -> list[Any]:
    """Calls ``function`` once with each of ``calls``' arguments; returns what it returned, in their order.

    Says what the workers wait for as long as none of them has begun.

    Raises:
        RayError: a call failed, or its worker died.
    """
    actors: Any = ray.remote(Caller)
    workers = [actors.options(**worker_options(placement)).remote() for _ in calls]
    owed = [worker.call.remote(function, arguments) for worker, arguments in zip(workers, calls, strict=True)]
    of_call = dict(zip(owed, workers, strict=True))
    waiting, began = Waiting(placement), time.monotonic()
    while of_call:
        done, _ = ray.wait(list(of_call), num_returns=1, timeout=LOOK_SECONDS)
        for one in done:
            ray.get(one)
            ray.kill(of_call.pop(one))  # what it holds is the next one's
        nodes = [node for node in alive_nodes() if placement.workers_on(node)]
        lacks = [waiting.lack(worker, nodes, began) for worker in of_call.values()]
        waiting.say([lack for lack in lacks if lack is not None] if len(of_call) == len(owed) and all(lacks) else [])
    results: list[Any] = ray.get(owed)
    return results
