#!/usr/bin/env python3
"""Benchmark job: runs every arm on every suite over the cluster's devices.

    python jobs/benchmark.py --profile quick
    ray job submit --working-dir . -- python jobs/benchmark.py --profile quick --results /shared/results

There is one actor per GPU, or one per node without GPUs. A free actor takes the next unit (a suite, some prompts). The
driver receives the unit's rows and writes them as one part. A second run skips the parts that exist.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# A submitted job runs from an uploaded copy of the checkout, so import the code from that copy.
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


class WorkerActor:
    """Ray actor with a benchmark worker on one device."""

    def load(self, config: WorkerConfig) -> str:
        """Load the model; returns the name of this worker's hardware."""
        self.worker = Worker(config)
        return self.worker.hardware

    def run(self, unit: Unit, arms: list[str], settings: BenchmarkSettings) -> UnitOutcome:
        """Run a unit; returns the rows of its prompts."""
        return self.worker.run(unit, arms, settings)


class Cluster:
    """The Ray cluster that this driver belongs to, or one started for it."""

    def __init__(self, requested: ResourceRequest) -> None:
        ray.init(logging_level=logging.ERROR)
        self.pool = WorkerPool(requested)
        placement = self.pool.placement
        self.device, self.threads, self.gpus_per_worker = placement.device, placement.threads, placement.gpus
        self.workers = self.pool.capacity
        share = f"{placement.gpus:g} {placement.kind or 'GPU'} each" if placement.gpus else "a node each"
        self.description = f"{self.workers} workers with {share}, on {placement.device}"
        self.usage = self.pool.usage
        self.worker_states = self.pool.worker_states

    def run(self, plan: Plan, waiting: list[Unit]) -> Iterator[SettledUnit]:
        """Run the units on actors; yields each unit when it is settled."""
        if not waiting:
            return
        actors: Any = ray.remote(WorkerActor)
        check = HardwareCheck(plan)

        def start(options: dict[str, Any]) -> tuple[Any, Any]:
            actor = actors.options(**options).remote()
            return actor, actor.load.remote(plan.config)

        def submit(actor: Any, unit: Unit) -> Any:
            return actor.run.remote(unit, plan.arms, plan.settings)

        yield from self.pool.run(WorkQueue(waiting), start, submit, check)


class HardwareCheck:
    """Refuses workers with other hardware than that of the existing parts, or else of the first worker."""

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
