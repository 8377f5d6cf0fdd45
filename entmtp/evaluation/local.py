"""The benchmark's units in this process, one after another, on one device."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import torch

from entmtp.evaluation.benchmark import Plan
from entmtp.evaluation.runner import Worker
from entmtp.evaluation.units import Unit
from entmtp.scheduling.cost import hardware_name


class ThisProcess:
    """One device: the first GPU, or the CPU with all its cores."""

    def __init__(self) -> None:
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.threads = len(os.sched_getaffinity(0))

    def run(self, plan: Plan, waiting: list[Unit]) -> Iterator[tuple[Unit, Any]]:
        """Loads the worker only if something waits."""
        worker = Worker(plan.place) if waiting else None
        for unit in waiting:
            assert worker is not None
            yield unit, worker.run(unit, plan.arms, plan.settings)

    def hardware(self) -> str:
        return hardware_name(torch.device(self.device))
