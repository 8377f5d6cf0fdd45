#!/usr/bin/env python3
"""The main job: every arm on every suite over the cluster's devices.

    python jobs/benchmark.py --profile quick
    ray job submit --working-dir . -- python jobs/benchmark.py --profile quick

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

from entmtp.evaluation.benchmark import Plan
from entmtp.evaluation.command import benchmark_command
from entmtp.evaluation.runner import Worker, Workplace
from entmtp.evaluation.units import Unit
from entmtp.scheduling.cost import hardware_name
from entmtp.settings import BenchmarkSettings

MAX_RESTARTS = 3


class Runner:
    """A benchmark worker on one device."""

    def __init__(self, place: Workplace) -> None:
        self.worker = Worker(place)

    def run(self, unit: Unit, arms: list[str], settings: BenchmarkSettings) -> Any:
        """Rows of one unit."""
        return self.worker.run(unit, arms, settings)

    def hardware(self) -> str:
        """What this worker measures on."""
        return hardware_name(self.worker.backbone.device)


class Cluster:
    """The Ray cluster that this driver belongs to, or one started for it."""

    def __init__(self) -> None:
        ray.init(logging_level=logging.ERROR)
        gpus, cpus = (int(ray.cluster_resources().get(kind, 0)) for kind in ("GPU", "CPU"))
        self.workers = gpus or max(1, sum(node["Alive"] and "CPU" in node["Resources"] for node in ray.nodes()))
        self.device = "cuda" if gpus else "cpu"
        self.threads = max(1, cpus // self.workers)
        self._hardware = ""

    def run(self, plan: Plan, waiting: list[Unit]) -> Iterator[tuple[Unit, Any]]:
        """Gives each actor its next unit when it has finished one; yields results as they come."""
        runners = [self._runner(plan) for _ in range(min(self.workers, len(waiting)))]
        queue = iter(waiting)
        running: dict[Any, tuple[Unit, Any]] = {}

        def give(runner: Any) -> None:
            if (unit := next(queue, None)) is not None:
                running[runner.run.remote(unit, plan.arms, plan.settings)] = (unit, runner)

        for runner in runners:
            give(runner)
        while running:
            (ready, *_), _ = ray.wait(list(running), num_returns=1)
            unit, runner = running.pop(ready)
            result = ray.get(ready)
            self._hardware = self._hardware or ray.get(runner.hardware.remote())
            give(runner)
            yield unit, result

    def _runner(self, plan: Plan) -> Any:
        resources = {"num_gpus": 1, "num_cpus": 1} if self.device == "cuda" else {"num_cpus": self.threads}
        # Ray sets OMP_NUM_THREADS to an actor's num_cpus only where it is whole; say it once for all cases.
        environment = {"OMP_NUM_THREADS": str(self.threads), "TOKENIZERS_PARALLELISM": "false"}
        runner = ray.remote(Runner).options(
            runtime_env={"env_vars": environment}, max_restarts=MAX_RESTARTS, max_task_retries=MAX_RESTARTS, **resources
        )
        return runner.remote(plan.place)

    def hardware(self) -> str:
        return self._hardware or "read from finished parts; no unit had to run"


if __name__ == "__main__":
    typer.run(benchmark_command(Cluster))
