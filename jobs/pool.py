"""Benchmark workers on a Ray cluster: one actor per share of a GPU, on nodes that may come and go while a run lasts."""

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
from jobs.demand import Demand
from jobs.waiting import Waiting

LOOK_SECONDS = 2.0
"""Between two looks at which nodes there are."""
WAIT_SECONDS = 1200.0
"""For the first node that fits, where nodes are started by an autoscaler."""
SAY_SECONDS = 60.0
FAILED_STARTS = 5
"""So many workers in a row that end before they have loaded the model: no further one would."""

Ask = Callable[[Any, Unit], Any]
"""Has an actor run a task; returns the reference of its :class:`UnitOutcome`."""


@dataclass
class Seat:
    """A worker.

    Attributes:
        owed: the reference of what it does now: the name of its hardware while it loads, then outcomes; None if idle.
        task: what it runs; None while it loads, or is idle.
        suite: of which it is to run units as long as there are any; None where all are alike to it.
        since: when it had loaded, on this process's clock; None before.
        lack: what it waits for that the node has not free; None once it has that.
    """

    node: Node
    actor: Any
    owed: Any
    task: Unit | None = None
    suite: str | None = None
    since: float | None = None
    began: float = field(default_factory=time.monotonic)
    lack: str | None = None

    def in_words(self) -> str:
        """What it does at this moment, and for how long."""
        seconds = f"{time.monotonic() - self.began:.0f} s"
        if self.task is not None:
            return f"{self.task.key}, {seconds}"
        if self.since is not None:
            return f"waits, {seconds}"
        return f"loads the model, {seconds}" if self.lack is None else f"waits for {self.lack}, {seconds}"


def alive_nodes() -> list[Node]:
    """The cluster's nodes, with the name that Ray gives their GPUs."""
    prefix = "accelerator_type:"
    found = []
    for node in ray.nodes():
        if node["Alive"]:
            has = node["Resources"]
            kind = next((name.removeprefix(prefix) for name in has if name.startswith(prefix)), "")
            name = str(node["NodeManagerAddress"])
            found.append(Node(node["NodeID"], name, has.get("CPU", 0.0), has.get("GPU", 0.0), kind))
    return found


def worker_options(placement: Placement) -> dict[str, Any]:
    """Ray's options of an actor that takes what ``placement`` says of whichever node has it."""
    return {
        "num_gpus": placement.gpus,
        # A share of a GPU is what a worker waits for; it must not wait for a CPU of that node as well.
        "num_cpus": 0 if placement.gpus else placement.threads,
        # Ray sets OMP_NUM_THREADS to an actor's num_cpus only where it is whole; say it once for all cases.
        "runtime_env": {"env_vars": {"OMP_NUM_THREADS": str(placement.threads), "TOKENIZERS_PARALLELISM": "false"}},
    }


class WorkerPool:
    """Keeps every node that fits full of workers, and gives each its next task as soon as it is free.

    Attributes:
        placement: what each worker takes.
        usage: of all that was done so far.
    """

    def __init__(self, requested: ResourceRequest) -> None:
        """Where workers are wished for and no node fits yet, waits for the first that does.

        Raises:
            EntMTPError: no node fits, or comes to fit.
        """
        self._demand = Demand(requested.share)
        self._most = requested.workers
        self.placement: Placement = choose_placement(self._first_nodes(requested), requested)
        self.places = min(sum(map(self.placement.workers_on, alive_nodes())), self._most or sys.maxsize)
        self.usage = Usage()
        self._seats: list[Seat] = []
        self._foreign: set[str] = set()  # nodes with other hardware than the first worker's
        self._failed_starts = 0
        self._looked = float("-inf")
        self._waiting = Waiting(self.placement)

    def _first_nodes(self, requested: ResourceRequest) -> list[Node]:
        began = said = time.monotonic()
        while True:
            nodes = alive_nodes()
            try:
                choose_placement(nodes, requested)
                return nodes
            except EntMTPError:
                requested.check()
                now = time.monotonic()
                if requested.workers is None or now > began + WAIT_SECONDS:
                    self._demand.keep(0)
                    raise
            self._demand.keep(requested.workers)
            if now >= said:
                print(f"no node fits yet; the cluster is asked for {requested.workers} workers' GPUs", flush=True)
                said = now + SAY_SECONDS
            time.sleep(LOOK_SECONDS)

    def run(
        self, queue: WorkQueue, start: Callable[[Any], tuple[Any, Any]], ask: Ask, check: Callable[[str], None]
    ) -> Iterator[SettledUnit]:
        """Runs all tasks of ``queue``; yields each unit as it is settled.

        ``start`` makes an actor with Ray's options that it is given, and returns it with the reference of its
        hardware's name, which ``check`` may refuse by an EntMTPError.

        Raises:
            EntMTPError: as ``check``, if no node has hardware that passes; or workers that never come to load.
        """
        try:
            while not queue.over:
                self._fill(queue, start)
                self._hand_out(queue, ask)
                seat = self._next_to_answer()
                if seat is not None and (settled := self._take(seat, queue, check)) is not None:
                    self._hand_out(queue, ask)  # nobody waits for what the caller does with this unit
                    yield settled
        finally:
            self._demand.keep(0)
            for seat in list(self._seats):
                self._dismiss(seat)

    def worker_states(self) -> list[tuple[str, str]]:
        """Each worker's node and what it does."""
        return [(seat.node.name, seat.in_words()) for seat in list(self._seats)]

    def _fill(self, queue: WorkQueue, start: Callable[[Any], tuple[Any, Any]]) -> None:
        """Starts a worker wherever there is room for one and work."""
        now = time.monotonic()
        if now < self._looked + LOOK_SECONDS:
            return
        self._looked = now
        self._say_what_they_wait_for()
        taken = Counter(seat.node.id for seat in self._seats)
        useful = queue.waiting - sum(seat.task is None for seat in self._seats)
        if self._most is not None:
            useful = min(useful, self._most - len(self._seats))
        for node in alive_nodes():
            room = 0 if node.id in self._foreign else self.placement.workers_on(node) - taken[node.id]
            for _ in range(min(room, useful)):
                actor, owed = start(self._options(node))
                self._seats.append(Seat(node, actor, owed))
                useful -= 1
        if self._most is not None and self.placement.gpus:
            self._demand.keep(max(0, useful))

    def _options(self, node: Node) -> dict[str, Any]:
        strategy = NodeAffinitySchedulingStrategy(node.id, soft=False)
        return worker_options(self.placement) | {"scheduling_strategy": strategy}

    def _say_what_they_wait_for(self) -> None:
        for seat in self._seats:
            starting = seat.since is None
            seat.lack = self._waiting.lack(seat.actor, [seat.node], seat.began) if starting else None
        self._waiting.say([seat.lack for seat in self._seats if seat.lack is not None])

    def _hand_out(self, queue: WorkQueue, ask: Ask) -> None:
        for seat in self._seats:
            if seat.owed is None and (task := queue.next(seat.suite)) is not None:
                seat.task, seat.owed, seat.began = task, ask(seat.actor, task), time.monotonic()
                # A suite's engines have graphs, which are lost when another's take their memory.
                seat.suite = task.suite if self.placement.device == "cuda" else None

    def _next_to_answer(self) -> Seat | None:
        by_ref = {seat.owed: seat for seat in self._seats if seat.owed is not None}
        if not by_ref:
            time.sleep(LOOK_SECONDS)  # no node fits at this moment
            return None
        ready, _ = ray.wait(list(by_ref), num_returns=1, timeout=LOOK_SECONDS)
        return by_ref[ready[0]] if ready else None

    def _take(self, seat: Seat, queue: WorkQueue, check: Callable[[str], None]) -> SettledUnit | None:
        """Takes in what a worker has answered, or that it is gone."""
        task, owed = seat.task, seat.owed
        seat.task = seat.owed = None
        seat.began = time.monotonic()
        try:
            answer: str | UnitOutcome = ray.get(owed)
        except EntMTPError:
            raise
        except RayError as error:
            self._dismiss(seat)
            reason = f"its worker ended: {_reason(error)}"
            if task is not None:
                return queue.lost(task, reason)
            self._count_failed_start(reason)
            return None
        if isinstance(answer, str):
            self._welcome(seat, answer, check)
            return None
        assert task is not None
        self.usage.busy_seconds += answer.busy_seconds
        return queue.returned(task, answer)

    def _welcome(self, seat: Seat, hardware: str, check: Callable[[str], None]) -> None:
        """A worker has loaded its model: it stays if its hardware is the run's."""
        self._failed_starts = 0
        try:
            check(hardware)
        except EntMTPError as refusal:
            self._dismiss(seat)
            self._foreign.add(seat.node.id)
            print(f"{seat.node.name} is left out: {refusal}", flush=True)
            if not self._seats:
                raise
            return
        seat.since = time.monotonic()
        self.usage.workers = max(self.usage.workers, sum(each.since is not None for each in self._seats))

    def _count_failed_start(self, reason: str) -> None:
        self._failed_starts += 1
        if self._failed_starts >= FAILED_STARTS:
            raise EntMTPError(
                f"worker: {self._failed_starts} in a row could not load the model, the last because {reason};"
                " see its log, and that model and heads fit into the memory of one worker"
            )

    def _dismiss(self, seat: Seat) -> None:
        if seat.since is not None:
            self.usage.loaded_seconds += time.monotonic() - seat.since
        self._seats.remove(seat)
        ray.kill(seat.actor)


def _reason(error: RayError) -> str:
    """The last line that says something: Ray tells the cause at the end of a worker's traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
