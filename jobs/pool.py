"""Benchmark workers on a Ray cluster: one actor per share of a GPU, on nodes that may join and leave during a run."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from entmtp.errors import EntMTPError
from entmtp.evaluation.run.executor import Usage
from entmtp.evaluation.run.placement import Node, Placement, ResourceRequest, choose_placement
from entmtp.evaluation.run.units import Unit
from entmtp.evaluation.run.work_queue import SettledUnit, UnitOutcome, WorkQueue
from jobs.demand import AutoscalerDemand
from jobs.waiting import MissingResources

POLL_SECONDS = 2.0
"""Interval at which the cluster's nodes are listed."""
WAIT_SECONDS = 1200.0
"""Maximum wait for the first node that fits, for clusters with an autoscaler."""
REPORT_SECONDS = 60.0
FAILED_STARTS = 5
"""Number of workers in a row that may end before they have loaded the model."""

Submit = Callable[[Any, Unit], Any]
"""Submits a unit to an actor; returns the reference of its :class:`UnitOutcome`."""


@dataclass
class PoolWorker:
    """A worker of the pool.

    Attributes:
        pending: reference of the actor's current call: its hardware's name while it loads, then outcomes; None if idle.
        unit: unit that it runs; None while it loads or is idle.
        suite: suite whose units it prefers; None if it has no preference.
        loaded_at: time at which it had loaded the model, on this process's clock; None before.
        began: time at which its current state began.
        missing: resources for which it waits on its node; None once it has them.
    """

    node: Node
    actor: Any
    pending: Any
    unit: Unit | None = None
    suite: str | None = None
    loaded_at: float | None = None
    began: float = field(default_factory=time.monotonic)
    missing: str | None = None

    def state(self) -> str:
        """Description of its current state and how long it has lasted."""
        seconds = f"{time.monotonic() - self.began:.0f} s"
        if self.unit is not None:
            return f"{self.unit.key}, {seconds}"
        if self.loaded_at is not None:
            return f"waits, {seconds}"
        return f"loads the model, {seconds}" if self.missing is None else f"waits for {self.missing}, {seconds}"


def alive_nodes() -> list[Node]:
    """The cluster's nodes, with Ray's names of their GPU types."""
    prefix = "accelerator_type:"
    found = []
    for node in ray.nodes():
        if node["Alive"]:
            resources = node["Resources"]
            kind = next((name.removeprefix(prefix) for name in resources if name.startswith(prefix)), "")
            name = str(node["NodeManagerAddress"])
            found.append(Node(node["NodeID"], name, resources.get("CPU", 0.0), resources.get("GPU", 0.0), kind))
    return found


def worker_options(placement: Placement) -> dict[str, Any]:
    """Ray's actor options for a worker with the resources of ``placement``, on any node."""
    return {
        "num_gpus": placement.gpus,
        # A worker with a share of a GPU must not wait for a CPU of that node as well.
        "num_cpus": 0 if placement.gpus else placement.threads,
        # Ray sets OMP_NUM_THREADS to an actor's num_cpus only if that is an integer, so set it in all cases.
        "runtime_env": {"env_vars": {"OMP_NUM_THREADS": str(placement.threads), "TOKENIZERS_PARALLELISM": "false"}},
    }


class WorkerPool:
    """Fills every node that fits with workers, and gives each free worker the next unit.

    Attributes:
        placement: resources of each worker.
        capacity: number of workers that the cluster has room for at the start.
        usage: busy and loaded time of the workers so far.
    """

    def __init__(self, requested: ResourceRequest) -> None:
        """Choose the placement. If a number of workers is requested, wait for the first node that fits.

        Raises:
            EntMTPError: no node fits, or none has joined in time.
        """
        self._demand = AutoscalerDemand(requested.share)
        self._max_workers = requested.workers
        self.placement: Placement = choose_placement(self._first_nodes(requested), requested)
        self.capacity = min(sum(map(self.placement.workers_on, alive_nodes())), self._max_workers or sys.maxsize)
        self.usage = Usage()
        self._workers: list[PoolWorker] = []
        self._excluded_nodes: set[str] = set()  # nodes with other hardware than the first worker's
        self._failed_starts = 0
        self._last_poll = float("-inf")
        self._missing = MissingResources(self.placement)

    def _first_nodes(self, requested: ResourceRequest) -> list[Node]:
        began = next_report = time.monotonic()
        while True:
            nodes = alive_nodes()
            try:
                choose_placement(nodes, requested)
                return nodes
            except EntMTPError:
                requested.check()
                now = time.monotonic()
                if requested.workers is None or now > began + WAIT_SECONDS:
                    self._demand.set_pending(0)
                    raise
            self._demand.set_pending(requested.workers)
            if now >= next_report:
                print(f"no node fits yet; requested GPUs for {requested.workers} workers", flush=True)
                next_report = now + REPORT_SECONDS
            time.sleep(POLL_SECONDS)

    def run(
        self, queue: WorkQueue, start: Callable[[Any], tuple[Any, Any]], submit: Submit, check: Callable[[str], None]
    ) -> Iterator[SettledUnit]:
        """Run all units of ``queue``; yields each unit when it is settled.

        Args:
            start: makes an actor with the given Ray options; returns it and the reference of its hardware's name.
            submit: submits a unit to an actor.
            check: refuses a worker's hardware by an EntMTPError.

        Raises:
            EntMTPError: no node has hardware that passes ``check``, or too many workers end before they have loaded.
        """
        try:
            while not queue.over:
                self._start_workers(queue, start)
                self._submit_units(queue, submit)
                worker = self._next_result()
                if worker is not None and (settled := self._receive(worker, queue, check)) is not None:
                    self._submit_units(queue, submit)  # before the yield, so that no worker waits for the caller
                    yield settled
        finally:
            self._demand.set_pending(0)
            for worker in list(self._workers):
                self._remove(worker)

    def worker_states(self) -> list[tuple[str, str]]:
        """Each worker's node and state."""
        return [(worker.node.name, worker.state()) for worker in list(self._workers)]

    def _start_workers(self, queue: WorkQueue, start: Callable[[Any], tuple[Any, Any]]) -> None:
        """Start workers on free resources, as many as there are waiting units for."""
        now = time.monotonic()
        if now < self._last_poll + POLL_SECONDS:
            return
        self._last_poll = now
        self._report_missing_resources()
        taken = Counter(worker.node.id for worker in self._workers)
        useful = queue.waiting - sum(worker.unit is None for worker in self._workers)
        if self._max_workers is not None:
            useful = min(useful, self._max_workers - len(self._workers))
        for node in alive_nodes():
            free = 0 if node.id in self._excluded_nodes else self.placement.workers_on(node) - taken[node.id]
            for _ in range(min(free, useful)):
                actor, pending = start(self._options(node))
                self._workers.append(PoolWorker(node, actor, pending))
                useful -= 1
        if self._max_workers is not None and self.placement.gpus:
            self._demand.set_pending(max(0, useful))

    def _options(self, node: Node) -> dict[str, Any]:
        strategy = NodeAffinitySchedulingStrategy(node.id, soft=False)
        return worker_options(self.placement) | {"scheduling_strategy": strategy}

    def _report_missing_resources(self) -> None:
        for worker in self._workers:
            starting = worker.loaded_at is None
            worker.missing = self._missing.of(worker.actor, [worker.node], worker.began) if starting else None
        self._missing.report([worker.missing for worker in self._workers if worker.missing is not None])

    def _submit_units(self, queue: WorkQueue, submit: Submit) -> None:
        for worker in self._workers:
            if worker.pending is None and (unit := queue.next(worker.suite)) is not None:
                worker.unit, worker.pending, worker.began = unit, submit(worker.actor, unit), time.monotonic()
                # Another suite's engines would evict this suite's captured graphs, so stay with the suite.
                worker.suite = unit.suite if self.placement.device == "cuda" else None

    def _next_result(self) -> PoolWorker | None:
        by_ref = {worker.pending: worker for worker in self._workers if worker.pending is not None}
        if not by_ref:
            time.sleep(POLL_SECONDS)  # no node fits at this moment
            return None
        ready, _ = ray.wait(list(by_ref), num_returns=1, timeout=POLL_SECONDS)
        return by_ref[ready[0]] if ready else None

    def _receive(self, worker: PoolWorker, queue: WorkQueue, check: Callable[[str], None]) -> SettledUnit | None:
        """Receive the result of a worker's call, or notice that the worker has died."""
        unit, pending = worker.unit, worker.pending
        worker.unit = worker.pending = None
        worker.began = time.monotonic()
        try:
            result: str | UnitOutcome = ray.get(pending)
        except EntMTPError:
            raise
        except RayError as error:
            self._remove(worker)
            reason = f"its worker ended: {_reason(error)}"
            if unit is not None:
                return queue.lost(unit, reason)
            self._count_failed_start(reason)
            return None
        if isinstance(result, str):
            self._admit(worker, result, check)
            return None
        assert unit is not None
        self.usage.busy_seconds += result.busy_seconds
        return queue.returned(unit, result)

    def _admit(self, worker: PoolWorker, hardware: str, check: Callable[[str], None]) -> None:
        """Admit a worker that has loaded its model, or exclude its node if the hardware is refused."""
        self._failed_starts = 0
        try:
            check(hardware)
        except EntMTPError as refusal:
            self._remove(worker)
            self._excluded_nodes.add(worker.node.id)
            print(f"{worker.node.name} is left out: {refusal}", flush=True)
            if not self._workers:
                raise
            return
        worker.loaded_at = time.monotonic()
        self.usage.workers = max(self.usage.workers, sum(each.loaded_at is not None for each in self._workers))

    def _count_failed_start(self, reason: str) -> None:
        self._failed_starts += 1
        if self._failed_starts >= FAILED_STARTS:
            raise EntMTPError(
                f"worker: {self._failed_starts} in a row could not load the model, the last because {reason};"
                " see its log, and that model and heads fit into the memory of one worker"
            )

    def _remove(self, worker: PoolWorker) -> None:
        if worker.loaded_at is not None:
            self.usage.loaded_seconds += time.monotonic() - worker.loaded_at
        self._workers.remove(worker)
        ray.kill(worker.actor)


def _reason(error: RayError) -> str:
    """Last non-empty line of Ray's error, which is the cause at the end of a worker's traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
