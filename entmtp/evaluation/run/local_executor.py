"""The executor that runs a benchmark's units in this process, one after another, on one device."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import torch

from entmtp.errors import EntMTPError
from entmtp.evaluation.run.executor import Usage
from entmtp.evaluation.run.placement import ResourceRequest
from entmtp.evaluation.run.plan import Plan
from entmtp.evaluation.run.units import Unit
from entmtp.evaluation.run.work_queue import SettledUnit, WorkQueue
from entmtp.evaluation.run.worker import Worker


class LocalExecutor:
    """One device: the first GPU, or the CPU with all its cores."""

    workers = 1

    def __init__(self, requested: ResourceRequest) -> None:
        for name in ("gpus_per_worker", "accelerator", "workers", "cpus_per_worker"):
            if (value := getattr(requested, name)) is not None:
                raise EntMTPError(f"{name}: {value} is for the workers of a cluster; run jobs/benchmark.py there")
        has_gpu = torch.cuda.is_available()
        if requested.device == "cuda" and not has_gpu:
            raise EntMTPError("device: 'cuda' needs a GPU and PyTorch sees none; give --device cpu")
        self.device = "cuda" if has_gpu and requested.device != "cpu" else "cpu"
        self.threads = len(os.sched_getaffinity(0))
        self.gpus_per_worker = float(self.device == "cuda")
        self.description = "this process, on " + ("one GPU" if self.gpus_per_worker else f"{self.threads} CPU threads")
        self.usage = Usage(workers=1)
        self._task = "loads the model"

    def run(self, plan: Plan, waiting: list[Unit]) -> Iterator[SettledUnit]:
        """Run the units; load the worker only if there are any."""
        if not waiting:
            return
        queue = WorkQueue(waiting)
        worker = Worker(plan.config)
        plan.check_hardware(worker.hardware)
        began = time.perf_counter()
        suite = None
        while (task := queue.next(suite)) is not None:
            self._task = task.key
            # Stay on a suite: its engines lose their CUDA graphs when another suite's engines take the memory.
            suite = task.suite if self.device == "cuda" else None
            outcome = worker.run(task, plan.arms, plan.settings)
            settled = queue.returned(task, outcome)
            self.usage.busy_seconds += outcome.busy_seconds
            if settled is not None:
                yield settled
            self.usage.loaded_seconds = time.perf_counter() - began

    def worker_states(self) -> list[tuple[str, str]]:
        return [("this process", self._task)]
