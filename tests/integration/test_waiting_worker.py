"""Jobs on a cluster whose CPUs another one holds say what they wait for, and go on when it lets them go."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import ray
from rich.console import Console

from benchmarks.fanout import local_cluster, make_plan, make_units, run_sleeping
from entmtp.evaluation.run.placement import ResourceRequest, choose_placement
from entmtp.evaluation.run.run import run_units
from jobs import waiting
from jobs.pool import WorkerPool, alive_nodes
from jobs.workers import call_each

pytestmark = pytest.mark.xdist_group("ray")

SECONDS = 300.0
LINE = (
    "the worker waits for 2 CPUs: 0 of 2 are free; stop what holds them ('ray status -v' shows it), or give a service"
    " fewer by num_cpus in its configuration and the worker the rest by --cpus-per-worker\n"
)


def occupying_actor(cpus: int) -> Any:
    """An actor that holds CPUs as long as it lives, as an engine does."""

    class Holder:  # local, so that Ray sends the class itself
        def ready(self) -> bool:
            return True

    actor: Any = ray.remote(num_cpus=cpus)(Holder).remote()
    assert ray.get(actor.ready.remote())
    return actor


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with local_cluster() as made:
        made.add_node(num_cpus=2)
        made.wait_for_nodes()
        yield made


@pytest.fixture
def holder(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An actor that holds all CPUs, as a service does."""
    monkeypatch.setattr(waiting, "PATIENCE_SECONDS", 0.0)
    return occupying_actor(cpus=2)


def let_go_when(said: Callable[[], bool], holder: Any, work: Callable[[], Any]) -> Any:
    """The result of work that gets its CPUs once it has said that it waits for them."""
    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(work)
        deadline = time.monotonic() + SECONDS
        try:
            while not said():
                assert not running.done(), running.result()
                assert time.monotonic() < deadline
                time.sleep(0.1)
        finally:
            ray.kill(holder)
        return running.result(timeout=SECONDS)


def test_a_benchmark_says_and_shows_that_its_worker_waits(
    holder: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pool = WorkerPool(ResourceRequest())
    plan = make_plan(make_units(2), tmp_path)

    def shown() -> bool:
        return any("waits for 2 CPUs: 0 of 2 are free, " in worker_states for _, worker_states in pool.worker_states())

    def work() -> None:
        run_units(plan, lambda units: run_sleeping(pool, units, 0.01), Console(quiet=True), pool.worker_states)

    let_go_when(shown, holder, work)
    assert plan.waiting == []
    assert capsys.readouterr().out == LINE, "it is repeated sparsely"


def test_calls_in_workers_of_their_own_say_so_too_and_follow_each_other(
    holder: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    placement = choose_placement(alive_nodes(), ResourceRequest())
    reported: list[str] = []

    def doubled(number: int) -> int:
        return 2 * number

    def said() -> bool:
        reported.append(capsys.readouterr().out)
        return any(reported)

    assert let_go_when(said, holder, lambda: call_each(doubled, [(1,), (2,), (3,)], placement)) == [2, 4, 6]
    assert "".join(reported) + capsys.readouterr().out == LINE.replace(
        "the worker waits", "3 workers wait, one of them"
    )


def test_a_worker_with_fewer_cpus_runs_next_to_a_service_that_leaves_some(cluster: Any, tmp_path: Path) -> None:
    service = occupying_actor(cpus=1)
    pool = WorkerPool(ResourceRequest(cpus_per_worker=1))
    assert len(list(run_sleeping(pool, make_units(1), 0.01))) == 1
    ray.kill(service)
