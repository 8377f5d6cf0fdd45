"""Work that is a few long calls: each in a worker of its own on the cluster, as many at once as it holds."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import ray

from entmtp.evaluation.run.placement import Node, Placement
from jobs.pool import LOOK_SECONDS, alive_nodes, worker_options
from jobs.waiting import Waiting, has_a_process


class Caller:
    """A worker that calls what it is given."""

    def call(self, function: Callable[..., Any], arguments: Sequence[Any]) -> Any:
        """Calls ``function`` with ``arguments``."""
        return function(*arguments)


def call_each(function: Callable[..., Any], calls: Sequence[Sequence[Any]], placement: Placement) -> list[Any]:
    """Calls ``function`` once with each of ``calls``' arguments; returns what it returned, in their order.

    Says what the workers wait for that have not begun, unless it is only for these calls' own end.

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
        waiting.say(held_by_others(list(of_call.values()), placement, waiting, began))
    results: list[Any] = ray.get(owed)
    return results


def held_by_others(workers: Sequence[Any], placement: Placement, waiting: Waiting, began: float) -> list[str]:
    """Lacks of the workers that have not begun.

    None where one of them can begin, and where those that have begun fill the cluster: the others are next then.
    """
    nodes = [node for node in alive_nodes() if placement.workers_on(node)]
    idle = [worker for worker in workers if not has_a_process(worker)]
    if len(workers) - len(idle) >= sum(_places(node, placement) for node in nodes):
        return []
    lacks = [waiting.lack(worker, nodes, began) for worker in idle]
    found = [lack for lack in lacks if lack is not None]
    return found if len(found) == len(lacks) else []


def _places(node: Node, placement: Placement) -> int:
    """How many calls a node holds at once: Ray counts nothing but what each takes."""
    return placement.workers_on(node) if placement.gpus else int(node.cpus // placement.threads)
