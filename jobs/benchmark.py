#!/usr/bin/env python3
"""The main job: every arm on every suite over the cluster's devices.

    python jobs/benchmark.py --profile quick
    ray job submit --working-dir . -- python jobs/benchmark.py --profile quick --results /shared/results

One actor per GPU, or one per node where there are none; each takes the next unit (a suite, some prompts) when it is
free. A unit's rows come back to this driver, which writes them as one part; run again, it skips the parts that exist.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# A submitted job runs from an uploaded copy of the checkout: that copy is the code that runs.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
import typer

from entmtp.errors import EntMTPError
from entmtp.evaluation.run.command import benchmark_command
from entmtp.evaluation.run.placement import ResourceRequest
from entmtp.evaluation.run.plan import Plan
from entmtp.evaluation.run.units import Unit
from entmtp.evaluation.run.work_queue import SettledUnit, UnitOutcome, WorkQueue
from entmtp.evaluation.run.worker import Worker, WorkerConfig
from entmtp.settings import BenchmarkSettings
from jobs.pool import WorkerPool


class Runner:
    """A benchmark worker on one device."""

    def load(self, config: WorkerConfig) -> str:
        """Loads the model; returns what this worker measures on."""
        self.worker = Worker(config)
        return self.worker.hardware

    def run(self, task: Unit, arms: list[str], settings: BenchmarkSettings) -> UnitOutcome:
        """Rows of the task's prompts."""
        return self.worker.run(task, arms, settings)


class Cluster:
    """The Ray cluster that this driver belongs to, or one started for it."""

    def __init__(self, requested: ResourceRequest) -> None:
        ray.init(logging_level=logging.ERROR)
        self.pool = WorkerPool(requested)
        placement = self.pool.placement
        self.device, self.threads, self.gpus_per_worker = placement.device, placement.threads, placement.gpus
        self.workers = self.pool.places
        held = f"{placement.gpus:g} {placement.kind or 'GPU'} each" if placement.gpus else "a node each"
        self.description = f"{self.workers} workers with {held}, on {placement.device}"
        self.usage = self.pool.usage
        self.worker_states = self.pool.worker_states

    def run(self, plan: Plan, waiting: list[Unit]) -> Iterator[SettledUnit]:
        """Runs the units on actors; yields each as it is settled."""
        if not waiting:
            return
        actors: Any = ray.remote(Runner)
        check = OneHardware(plan)

        def start(options: dict[str, Any]) -> tuple[Any, Any]:
            actor = actors.options(**options).remote()
            return actor, actor.load.remote(plan.config)

        def ask(actor: Any, task: Unit) -> Any:
            return actor.run.remote(task, plan.arms, plan.settings)

        yield from self.pool.run(WorkQueue(waiting), start, ask, check)


class OneHardware:
    """Lets workers in whose hardware is that of the parts there are, or else of the first worker."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._hardware: str | None = None

    def __call__(self, hardware: str) -> None:
        if self._hardware is None:
            self._plan.check_hardware(hardware)
            self._hardware = hardware
        if hardware != self._hardware:
            raise EntMTPError(f"it has '{hardware}' and this run is on '{self._hardware}'; times are never mixed")


if __name__ == "__main__":
    typer.run(benchmark_command(Cluster))
