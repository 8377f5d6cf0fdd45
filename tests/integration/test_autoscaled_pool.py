"""The main job's workers on a cluster that has no GPU yet and whose autoscaler starts nodes when it is asked to."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import AutoscalingCluster
from ray.util.placement_group import placement_group_table
from rich.console import Console

from benchmarks.fanout import driver_settings, made_plan, made_units, sleeping
from entmtp.errors import EntMTPError
from entmtp.evaluation.benchmark import run_units
from entmtp.evaluation.placement import Wishes
from jobs import pool as pools
from jobs.pool import WorkerPool, alive_nodes

WORKER = {"resources": {"CPU": 1, "GPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 3}


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    driver_settings()
    made = AutoscalingCluster(head_resources={"CPU": 0}, worker_node_types={"gpu": WORKER}, idle_timeout_minutes=60)
    made.start()
    try:
        ray.init(address="auto", log_to_driver=False)
        yield
    finally:
        ray.shutdown()
        made.shutdown()


def waiting_wishes() -> int:
    return sum(group["state"] == "PENDING" for group in placement_group_table().values())


def test_without_workers_asked_for_nobody_waits(cluster: None) -> None:
    with pytest.raises(EntMTPError, match="gpus_per_worker: 1 is more than any node has"):
        WorkerPool(Wishes(device="cpu", gpus_per_worker=1))


def test_a_cluster_that_never_gives_any_is_told(cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "WAIT_SECONDS", 1.0)
    with pytest.raises(EntMTPError, match="gpus_per_worker: 5 is more than any node has"):
        WorkerPool(Wishes(device="cpu", gpus_per_worker=5, workers=1))


def test_nodes_come_for_the_workers_that_are_wished_for(cluster: None, tmp_path: Path) -> None:
    pool = WorkerPool(Wishes(device="cpu", gpus_per_worker=1, workers=2))
    assert pool.placement.gpus == 1
    plan = made_plan(made_units(120), tmp_path)
    run_units(plan, lambda waiting: sleeping(pool, waiting, 0.3), Console(quiet=True))
    assert not plan.waiting
    assert pool.usage.workers == 2
    assert sum(node.gpus for node in alive_nodes()) == 2, "a third was possible, but nobody asked for it"
    time.sleep(1)
    assert waiting_wishes() == 0
