"""Report of the resources for which a worker waits, so that a job on a busy cluster is not silent."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from entmtp.evaluation.run.placement import Node, Placement
from jobs.ray_internals import free_resources, has_a_process

PATIENCE_SECONDS = 15.0
"""Time before the first report: Ray takes some seconds to start a worker even on free resources."""
REPORT_SECONDS = 60.0

_STOP = "stop what holds them ('ray status -v' shows it)"
_FIXES = {
    "CPU": (
        f"{_STOP}, or give a service fewer by num_cpus in its configuration and the worker the rest by"
        " --cpus-per-worker"
    ),
    "GPU": f"{_STOP}, or add a node that has more",
}


class MissingResources:
    """Finds the resources for which workers wait, and prints them at intervals."""

    def __init__(self, placement: Placement) -> None:
        """``placement`` has the resources that each worker takes of a node."""
        self._resource, self._needed = ("GPU", placement.gpus) if placement.gpus else ("CPU", float(placement.threads))
        self._next_report = 0.0

    def of(self, actor: Any, nodes: Sequence[Node], since: float) -> str | None:
        """Resources for which an actor waits on one of ``nodes``, such as '2 CPUs: 0 of 2 are free'.

        None if the actor has started or can start, or was requested less than ``PATIENCE_SECONDS`` ago.

        Args:
            since: time of the actor's request, on this process's clock.
        """
        if time.monotonic() < since + PATIENCE_SECONDS or has_a_process(actor):
            return None
        free = free_resources()
        each = [(free.get(node.id, {}).get(self._resource, 0.0), self._total(node)) for node in nodes]
        most, total = max(each, default=(0.0, 0.0))
        if most >= self._needed:
            return None
        return f"{_counted(self._needed, self._resource)}: {most:g} of {total:g} are free"

    def report(self, missing: Sequence[str]) -> None:
        """Print a line about waiting workers, at most one in ``REPORT_SECONDS``."""
        now = time.monotonic()
        if not missing or now < self._next_report:
            return
        self._next_report = now + REPORT_SECONDS
        workers = "the worker waits" if len(missing) == 1 else f"{len(missing)} workers wait, one of them"
        print(f"{workers} for {missing[0]}; {_FIXES[self._resource]}", flush=True)

    def _total(self, node: Node) -> float:
        return node.gpus if self._resource == "GPU" else node.cpus


def _counted(amount: float, resource: str) -> str:
    return f"{amount:g} {resource}{'' if amount == 1 else 's'}"
