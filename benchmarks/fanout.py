#!/usr/bin/env python3
"""Overhead of the benchmark's fan-out: units whose decoding is a fixed sleep, on one, two and four workers.

    python -m benchmarks.fanout
    python -m benchmarks.fanout --units 400 --seconds 0.1 --record fanout.json

The workers are real, each on a node of `ray.cluster_utils` with a GPU that it reserves and doesn't use. Their rows are
sent to this driver and written as parts. With perfect scaling `n` workers take an `n`-th of the time.
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import ray
import torch
import typer
from rich.console import Console

from benchmarks.lib.record import Cell, RecordOption, Table, UncommittedOption, deliver, make_record
from benchmarks.lib.sleeping_worker import SleepingWorker
from entmtp.cli_errors import plain_errors
from entmtp.errors import EntMTPError
from entmtp.evaluation.results.storage import open_store
from entmtp.evaluation.run.executor import Usage
from entmtp.evaluation.run.placement import ResourceRequest
from entmtp.evaluation.run.plan import Plan
from entmtp.evaluation.run.run import run_units
from entmtp.evaluation.run.units import Unit
from entmtp.evaluation.run.work_queue import SettledUnit, WorkQueue
from entmtp.evaluation.run.worker import WorkerConfig
from entmtp.policies.step_cost import hardware_name
from entmtp.ray_head import LOCAL_SETTINGS
from entmtp.settings import BenchmarkSettings
from entmtp.suites import Prompt
from jobs.pool import WorkerPool

WORKERS = (1, 2, 4)
BAR = 0.08
_RESOURCES = ResourceRequest(device="cpu", gpus_per_worker=1)
NOTES = (
    "seconds: from when a worker had started to the end, the mean over workers; perfect: the one worker's, divided by"
    " their number. busy: share of the workers' time within units. beside a unit: what a worker waits for this driver,"
    " Ray and storage with each, on a machine that they share with all workers; a real unit takes seconds to minutes,"
    " and the main job prints how busy its workers were.",
)


def make_units(count: int, prompts: int = 1) -> list[Unit]:
    """Units with made-up prompts."""
    return [
        Unit(
            f"gsm8k-{number:03d}",
            number * prompts,
            "gsm8k",
            "sample",
            tuple(Prompt(f"gsm8k/{number * prompts + index}", "gsm8k", "?", {}) for index in range(prompts)),
        )
        for number in range(count)
    ]


def make_plan(units: list[Unit], results: Path) -> Plan:
    """Plan of these units for workers that need no model."""
    config = WorkerConfig("none", {}, {}, "cpu", 1)
    return Plan("quick", BenchmarkSettings(), [], config, units, open_store(str(results)), "", {}, {})


def run_sleeping(
    pool: WorkerPool, waiting: list[Unit], seconds: float, worker: type[SleepingWorker] = SleepingWorker
) -> Iterator[SettledUnit]:
    """Run units on ``worker`` actors."""
    actors: Any = ray.remote(worker)

    def start(options: dict[str, Any]) -> tuple[Any, Any]:
        actor = actors.options(**options).remote()
        return actor, actor.load.remote()

    yield from pool.run(WorkQueue(waiting), start, lambda actor, unit: actor.run.remote(unit, seconds), _any_hardware)


def _any_hardware(hardware: str) -> None:
    """Accept any hardware."""


def set_driver_environment() -> None:
    """Set this driver's environment as workers on nodes of `ray.cluster_utils` need it."""
    os.environ |= LOCAL_SETTINGS
    root = str(Path(__file__).resolve().parents[1])
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))


@contextlib.contextmanager
def local_cluster() -> Iterator[Any]:
    """Ray cluster on this machine whose head runs no workers; this process is its driver."""
    from ray.cluster_utils import Cluster

    set_driver_environment()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        ray.init(address=cluster.address, logging_level=logging.ERROR, log_to_driver=False)
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


def measure(units: int, seconds: float) -> dict[int, Usage]:
    """Usage of the workers' time, by the number of workers."""
    found = {}
    with local_cluster() as cluster:
        for count in WORKERS:
            while len(cluster.worker_nodes) < count:
                cluster.add_node(num_cpus=1, num_gpus=1)
            cluster.wait_for_nodes()
            found[count] = _measured(units, seconds)
    return found


def _measured(units: int, seconds: float) -> Usage:
    """Usage of the workers' time on all current nodes."""
    pool = WorkerPool(_RESOURCES)
    with tempfile.TemporaryDirectory() as results:
        plan = make_plan(make_units(units), Path(results))
        run_units(plan, lambda waiting: run_sleeping(pool, waiting, seconds), Console(quiet=True))
        if plan.waiting:
            raise EntMTPError(f"fanout: {len(plan.waiting)} of {units} units have no part")
    return pool.usage


def table_of(found: dict[int, Usage], units: int) -> Table:
    """Table of seconds, deviation from perfect scaling, and overhead of each unit."""
    one = found[WORKERS[0]].loaded_seconds / WORKERS[0]
    rows: list[list[Cell]] = []
    for count, usage in found.items():
        seconds, perfect = usage.loaded_seconds / count, one / count
        shares = [f"{share:.1%}" for share in (seconds / perfect - 1, usage.share)]
        overhead = round(1000 * (usage.loaded_seconds - usage.busy_seconds) / units)
        rows.append([count, round(seconds, 2), round(perfect, 2), *shares, f"{overhead} ms"])
    columns = ["workers", "seconds", "perfect", "above perfect", "busy", "beside a unit"]
    return Table(title="Fan-out", columns=columns, rows=rows)


def main(
    units: Annotated[int, typer.Option(min=4, help="of one prompt each")] = 200,
    seconds: Annotated[float, typer.Option(min=0, help="that each sleeps")] = 0.25,
    record: RecordOption = None,
    uncommitted: UncommittedOption = False,
) -> None:
    """Measure one, two and four workers."""
    with plain_errors("fanout", interrupted="nothing was recorded"):
        found = measure(units, seconds)
        last = WORKERS[-1]
        above = found[last].loaded_seconds / found[WORKERS[0]].loaded_seconds - 1
        verdict = "within" if above <= BAR else "NOT within"
        notes = [*NOTES, f"{last} workers: {above:.1%} above perfect scaling, {verdict} the bar of {BAR:.0%}."]
        machine = hardware_name(torch.device("cpu"))
        title = f"{units} units of {seconds:g} s each"
        deliver(make_record("fanout", title, machine, [table_of(found, units)], notes), record, uncommitted)


if __name__ == "__main__":
    typer.run(main)
