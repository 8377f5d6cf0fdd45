"""The main job on a cluster of one-GPU nodes (nodes of `ray.cluster_utils`): faults, restarts and poisoned prompts."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from rich.console import Console

from benchmarks.fanout import local_cluster, make_plan, make_units, run_sleeping
from benchmarks.lib.sleeping_worker import SleepingWorker
from entmtp.evaluation.results.rows import finished_keys, read_metadata, read_parts
from entmtp.evaluation.results.storage import open_store
from entmtp.evaluation.run.placement import ResourceRequest
from entmtp.evaluation.run.run import run_units
from entmtp.evaluation.run.units import Unit
from entmtp.evaluation.run.work_queue import TRIES, UnitOutcome
from jobs.pool import WorkerPool
from tests.helpers.paths import ROOT
from tests.helpers.saved_project import Saved, save_project

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray")]

NODES, UNITS = 4, 200
ARMS = ("autoregressive", "medusa", "hydra", "entmtp-dynamic")
SECONDS = 1200
TIMES = {"order", "seconds", "prefill_seconds", "draft_seconds", "verify_seconds", "accept_seconds", "policy_seconds"}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with local_cluster() as made:
        for _ in range(NODES):
            made.add_node(num_cpus=1, num_gpus=1)
        made.wait_for_nodes()
        yield made


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """A tiny project with enough prompts: about half of them are scored."""
    project = save_project(tmp_path_factory.mktemp("project"))
    rows = [{"question": f"What is {n} + {n + 1}?", "answer": f"#### {2 * n + 1}"} for n in range(3 * UNITS)]
    project.data("gsm8k").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return project


class Job:
    """The driver as a process of its own, which can be killed."""

    def __init__(self, saved: Saved, address: str, cache: Path) -> None:
        self._options = [*saved.options(["gsm8k"]), *(f"--arm={arm}" for arm in ARMS)]
        self._options += [f"--prompts={UNITS}", "--repetitions=2", "--device=cpu", "--gpus-per-worker=1"]
        self._environment = os.environ | {
            "RAY_ADDRESS": address,
            "ENTMTP_CACHE": str(cache),
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": str(ROOT),
            "COLUMNS": "200",
        }

    def start(self, results: Path, *more: str) -> subprocess.Popen[str]:
        command = [sys.executable, "jobs/benchmark.py", *self._options, f"--results={results.as_uri()}", *more]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=ROOT, env=self._environment, text=True, stdout=pipe, stderr=pipe)

    def finish(self, results: Path, *more: str) -> str:
        """Runs to the end, which must be a good one; returns what it printed."""
        with self.start(results, *more) as run:
            out, err = run.communicate(timeout=SECONDS)
        assert run.returncode == 0, out[-4000:] + err[-4000:]
        return out


@pytest.fixture(scope="module")
def job(saved: Saved, cluster: Any, tmp_path_factory: pytest.TempPathFactory) -> Job:
    return Job(saved, cluster.address, tmp_path_factory.mktemp("cache"))


def parts(results: Path) -> dict[str, int]:
    """Finished units and when their part was written."""
    folder = results / "parts"
    keys = finished_keys(open_store(str(folder)))
    return {key: (folder / f"requests-{key}.parquet").stat().st_mtime_ns for key in keys}


def wait_for(units: int, results: Path, run: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + SECONDS
    while len(parts(results)) < units:
        assert run.poll() is None, run.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def without_times(table: pa.Table) -> list[dict[str, str]]:
    # Text, as NaN is not equal to itself.
    return [{name: str(value) for name, value in row.items() if name not in TIMES} for row in table.to_pylist()]


def test_nodes_that_come_and_go_and_a_killed_driver_change_no_result(job: Job, cluster: Any, tmp_path: Path) -> None:
    plan = job.finish(tmp_path / "faults", "--dry-run")
    assert f"{NODES} workers" in plan
    assert not (tmp_path / "faults").exists()
    calm = job.finish(tmp_path / "calm")
    assert "workers were busy" in calm

    results = tmp_path / "faults"
    driver = job.start(results)
    wait_for(3 * UNITS // 10, results, driver)
    cluster.remove_node(sorted(cluster.worker_nodes, key=lambda node: node.node_id)[0], allow_graceful=False)
    wait_for(5 * UNITS // 10, results, driver)
    cluster.add_node(num_cpus=1, num_gpus=1)
    wait_for(7 * UNITS // 10, results, driver)
    driver.send_signal(signal.SIGKILL)
    driver.communicate()
    before = parts(results)
    assert 7 * UNITS // 10 <= len(before) < UNITS

    out = job.finish(results)
    assert f"{len(before)} of {UNITS} units are in" in out
    after = parts(results)
    assert len(after) == UNITS
    assert before.items() <= after.items(), "no unit that was done is done again"
    assert not [path for path in results.rglob("*") if "unfinished" in path.name]

    requests, steps = read_parts(open_store(str(results / "parts")))
    expected, expected_steps = read_parts(open_store(str(tmp_path / "calm" / "parts")))
    runs = Counter(zip(*(requests[name].to_pylist() for name in ("arm", "prompt_id", "repetition")), strict=True))
    assert len(runs) == UNITS * len(ARMS) * 2
    assert set(runs.values()) == {1}
    assert without_times(requests) == without_times(expected)
    assert steps["accepted_path"].to_pylist() == expected_steps["accepted_path"].to_pylist()


def mortal() -> type[SleepingWorker]:
    """Workers for which one prompt raises and another ends the process; local, so that Ray sends the class itself."""

    class Mortal(SleepingWorker):
        def run(self, unit: Unit, seconds: float) -> UnitOutcome:
            ids = {prompt.id for prompt in unit.prompts}
            if "gsm8k/5" in ids:
                os._exit(1)
            outcome = super().run(unit, seconds)
            if "gsm8k/9" not in ids:
                return outcome
            rest = outcome.requests.filter(pc.field("prompt_id") != "gsm8k/9")
            failures = {"gsm8k/9": "ValueError: too much"}
            return UnitOutcome(rest, outcome.steps.slice(0, 0), failures, outcome.busy_seconds, outcome.metadata)

    return Mortal


def test_prompts_that_raise_or_kill_are_set_aside_and_all_others_are_done(cluster: Any, tmp_path: Path) -> None:
    plan = make_plan(make_units(8, prompts=2), tmp_path)
    pool = WorkerPool(ResourceRequest(device="cpu", gpus_per_worker=1))
    run_units(plan, lambda waiting: run_sleeping(pool, waiting, 0.01, mortal()), Console(quiet=True))
    assert plan.waiting == []
    committed = read_metadata(plan.parts, [unit.key for unit in plan.units])
    set_aside = {prompt["prompt_id"]: prompt for part in committed for prompt in part["set_aside"]}
    assert set(set_aside) == {"gsm8k/5", "gsm8k/9"}
    assert {prompt["tries"] for prompt in set_aside.values()} == {TRIES}
    assert "its worker ended" in set_aside["gsm8k/5"]["reason"]
    assert set_aside["gsm8k/9"]["reason"] == "ValueError: too much"
    requests, _ = read_parts(plan.parts)
    assert set(requests["prompt_id"].to_pylist()) == {f"gsm8k/{n}" for n in range(16)} - set(set_aside)
