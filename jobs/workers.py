"""Long function calls on the cluster, each in a worker of its own, as many at once as there are resources for."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import ray

from entmtp.evaluation.run.placement import Node, Placement
from jobs.pool import POLL_SECONDS, alive_nodes, worker_options
from jobs.ray_internals import has_a_process
from jobs.waiting import MissingResources


class CallActor:
    """Ray actor that calls a function."""

    def call(self, function: Callable[..., Any], arguments: Sequence[Any]) -> Any:
        """Call ``function`` with ``arguments``."""
        return function(*arguments)


def call_each(function: Callable[..., Any], calls: Sequence[Sequence[Any]], placement: Placement) -> list[Any]:
    """Call ``function`` once with each of ``calls``' arguments; returns the results in the same order.

    Reports the resources for which workers wait, unless these calls themselves use them.

    Raises:
        RayError: a call failed, or its worker died.
    """
    actors: Any = ray.remote(CallActor)
    workers = [actors.options(**worker_options(placement)).remote() for _ in calls]
    pending = [worker.call.remote(function, arguments) for worker, arguments in zip(workers, calls, strict=True)]
    running = dict(zip(pending, workers, strict=True))
    missing, began = MissingResources(placement), time.monotonic()
    while running:
        done, _ = ray.wait(list(running), num_returns=1, timeout=POLL_SECONDS)
        for one in done:
            ray.get(one)
            ray.kill(running.pop(one))  # free its resources for the next worker
        missing.report(used_by_others(list(running.values()), placement, missing, began))
    results: list[Any] = ray.get(pending)
    return results


def used_by_others(workers: Sequence[Any], placement: Placement, missing: MissingResources, began: float) -> list[str]:
    """Missing resources of the workers that have not started, if other programs use them.

    Empty if one of these workers can start, or if the workers that have started fill the cluster.
    """
    nodes = [node for node in alive_nodes() if placement.workers_on(node)]
    idle = [worker for worker in workers if not has_a_process(worker)]
    if len(workers) - len(idle) >= sum(_capacity(node, placement) for node in nodes):
        return []
    each = [missing.of(worker, nodes, began) for worker in idle]
    found = [one for one in each if one is not None]
    return found if len(found) == len(each) else []


def _capacity(node: Node, placement: Placement) -> int:
    """Number of calls that a node runs at once; Ray counts only the resources of each call."""
    return placement.workers_on(node) if placement.gpus else int(node.cpus // placement.threads)
