"""Says what a worker that Ray has not started yet waits for: a job on a busy cluster would be silent otherwise."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from ray._private import state  # Ray's public ways to ask this need its dashboard, which not every cluster has

from entmtp.evaluation.run.placement import Node, Placement

PATIENCE_SECONDS = 15.0
"""From a worker's request to the first line: Ray takes some seconds to start one where all is free."""
SAY_SECONDS = 60.0

_STOP = "stop what holds them ('ray status -v' shows it)"
_FIXES = {
    "CPU": (
        f"{_STOP}, or give a service fewer by num_cpus in its configuration and the worker the rest by"
        " --cpus-per-worker"
    ),
    "GPU": f"{_STOP}, or add a node that has more",
}


class Waiting:
    """Looks at workers that have not started, and prints a line now and then."""

    def __init__(self, placement: Placement) -> None:
        """``placement`` is what each worker takes of a node."""
        self._resource, self._needed = ("GPU", placement.gpus) if placement.gpus else ("CPU", float(placement.threads))
        self._next_line = 0.0

    def lack(self, actor: Any, nodes: Sequence[Node], since: float) -> str | None:
        """Resources that an actor waits for on one of ``nodes``: '2 CPUs: 0 of 2 are free'.

        None where it has started or can start, and within the patience: ``since`` is when it was requested, on this
        process's clock.
        """
        if time.monotonic() < since + PATIENCE_SECONDS or has_a_process(actor):
            return None
        free = state.available_resources_per_node()
        each = [(free.get(node.id, {}).get(self._resource, 0.0), self._total(node)) for node in nodes]
        most, total = max(each, default=(0.0, 0.0))
        if most >= self._needed:
            return None
        return f"{_counted(self._needed, self._resource)}: {most:g} of {total:g} are free"

    def say(self, lacks: Sequence[str]) -> None:
        """Prints a line about workers that lack something, unless the last one was a moment ago."""
        now = time.monotonic()
        if not lacks or now < self._next_line:
            return
        self._next_line = now + SAY_SECONDS
        who = "the worker waits" if len(lacks) == 1 else f"{len(lacks)} workers wait, one of them"
        print(f"{who} for {lacks[0]}; {_FIXES[self._resource]}", flush=True)

    def _total(self, node: Node) -> float:
        return node.gpus if self._resource == "GPU" else node.cpus


def has_a_process(actor: Any) -> bool:
    """Whether Ray has given the actor what it asked for; its process may still be starting."""
    return bool(state.actors(actor._actor_id.hex()).get("Pid"))


def _counted(amount: float, resource: str) -> str:
    return f"{amount:g} {resource}{'' if amount == 1 else 's'}"
