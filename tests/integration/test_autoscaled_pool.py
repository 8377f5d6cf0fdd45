"""The main job's workers on a cluster that has no GPU yet, and starts a node for each wish that waits."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from ray.util.placement_group import placement_group_table
from rich.console import Console

from benchmarks.fanout import local_cluster, make_plan, make_units, run_sleeping
from entmtp.errors import EntMTPError
from entmtp.evaluation.run.placement import ResourceRequest
from entmtp.evaluation.run.run import run_units
from jobs import pool as pools
from jobs.pool import WorkerPool, alive_nodes

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray")]

MOST = 3


def waiting_wishes() -> int:
    return sum(group["state"] == "PENDING" for group in placement_group_table().values())


def start_nodes(cluster: Any) -> None:
    """What an autoscaler does: a node where a wish waits, as long as there are fewer than :data:`MOST`."""
    if waiting_wishes() and len(cluster.worker_nodes) < MOST:
        cluster.add_node(num_cpus=1, num_gpus=1)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with local_cluster() as made:
        yield made


def test_without_workers_asked_for_nobody_waits(cluster: Any) -> None:
    with pytest.raises(EntMTPError, match="gpus_per_worker: 1 is more than any node has"):
        WorkerPool(ResourceRequest(device="cpu", gpus_per_worker=1))


def test_a_cluster_that_gives_none_is_told(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "WAIT_SECONDS", 1.0)
    with pytest.raises(EntMTPError, match="gpus_per_worker: 1 is more than any node has"):
        WorkerPool(ResourceRequest(device="cpu", gpus_per_worker=1, workers=2))
    assert waiting_wishes() == 0


def test_nodes_come_for_the_workers_that_are_wished_for(cluster: Any, tmp_path: Path) -> None:
    plan = make_plan(make_units(100), tmp_path)

    def run() -> WorkerPool:
        pool = WorkerPool(ResourceRequest(device="cpu", gpus_per_worker=1, workers=2))
        run_units(plan, lambda waiting: run_sleeping(pool, waiting, 0.3), Console(quiet=True))
        return pool

    with ThreadPoolExecutor(1) as driver:
        running = driver.submit(run)
        while not running.done():
            start_nodes(cluster)
            time.sleep(0.3)
        pool = running.result()
    assert not plan.waiting
    assert pool.placement.gpus == 1
    assert pool.usage.workers == 2
    assert sum(node.gpus for node in alive_nodes()) == 2, "a third was possible, but nobody asked for it"
    assert waiting_wishes() == 0
