"""The main job on a tiny model: as a real Ray job, and as a command that is interrupted, killed and run again."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as csv
import pytest
from mlflow import MlflowClient

from entmtp.evaluation.results.rows import read_parts
from entmtp.evaluation.results.storage import open_store
from entmtp.tracking.client import default_tracking_uri
from tests.helpers.paths import ROOT
from tests.helpers.saved_project import SUITES, Saved, save_project
from tests.helpers.stateless_arms import DEFAULT

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray")]

SECONDS = 600
UNITS = 6
SIZE = ["--profile=standard", "--prompts=3", "--max-new-tokens=24", "--repetitions=1"]
TIMES = {"order", "seconds", "prefill_seconds", "draft_seconds", "verify_seconds", "accept_seconds", "policy_seconds"}
STEP_TIMES = {"draft_ms", "verify_ms", "accept_ms", "policy_ms"}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    return save_project(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """One cache for all runs: step costs are measured once, so every run has the same trees."""
    cache = str(tmp_path_factory.mktemp("cache"))
    return os.environ | {"ENTMTP_CACHE": cache, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), "COLUMNS": "200"}


def command(saved: Saved, results: Path) -> list[str]:
    options = [*saved.options(), *SIZE, "--results", str(results)]
    return [sys.executable, "-m", "entmtp.cli", "benchmark", *options]


@pytest.fixture(scope="module")
def uninterrupted(
    saved: Saved, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """Results and output of a run that nobody disturbed."""
    results = tmp_path_factory.mktemp("uninterrupted")
    done = subprocess.run(
        command(saved, results), env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return results, done.stdout


def parts(results: Path) -> dict[Path, int]:
    """Finished files of a run and when they were written."""
    return {path: path.stat().st_mtime_ns for path in (results / "parts").glob("*.parquet")}


def finished(results: Path) -> int:
    return len(list((results / "parts").glob("requests-*.parquet")))


def stop_at(
    units: int, how: signal.Signals, arguments: Sequence[str], environment: dict[str, str], results: Path
) -> tuple[int, str]:
    """Starts the command, ends it with ``how`` once ``units`` are done; returns its exit code and standard error."""
    out, err = subprocess.DEVNULL, subprocess.PIPE
    with subprocess.Popen(arguments, env=environment, text=True, stdout=out, stderr=err) as run:
        deadline = time.monotonic() + SECONDS
        while finished(results) < units:
            assert run.poll() is None, run.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.01)
        run.send_signal(how)
        _, errors = run.communicate(timeout=SECONDS)
    return run.returncode, errors


def without(table: pa.Table, names: set[str]) -> list[dict[str, object]]:
    # Text, as NaN is not equal to itself.
    return [{name: str(value) for name, value in row.items() if name not in names} for row in table.to_pylist()]


def unfinished(results: Path) -> list[Path]:
    return [path for path in results.rglob("*") if "unfinished" in path.name]


def test_interrupted_and_killed_it_goes_on_and_ends_the_same(
    saved: Saved, environment: dict[str, str], uninterrupted: tuple[Path, str], tmp_path: Path
) -> None:
    arguments = command(saved, tmp_path)
    code, errors = stop_at(1, signal.SIGINT, arguments, environment, tmp_path)
    assert code == 130
    assert "entmtp benchmark: interrupted; run the same command again to go on" in errors
    assert "Traceback" not in errors
    after_interrupt = parts(tmp_path)
    begun = finished(tmp_path)
    assert 1 <= begun < UNITS - 1

    code, _ = stop_at(begun + 1, signal.SIGKILL, arguments, environment, tmp_path)
    assert code == -signal.SIGKILL
    after_kill = parts(tmp_path)
    assert after_interrupt.items() <= after_kill.items()
    begun = finished(tmp_path)
    assert begun < UNITS

    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    assert f"{begun} of {UNITS} units are in" in done.stdout
    kept = parts(tmp_path)
    assert after_kill.items() <= kept.items()
    assert finished(tmp_path) == UNITS
    assert unfinished(tmp_path) == []

    for ours, theirs, times in zip(
        read_parts(open_store(str(tmp_path / "parts"))),
        read_parts(open_store(str(uninterrupted[0] / "parts"))),
        (TIMES, STEP_TIMES),
        strict=True,
    ):
        assert without(ours, times) == without(theirs, times)
    told, expected = (_table_without_times(folder) for folder in (tmp_path, uninterrupted[0]))
    assert told == expected


def _table_without_times(results: Path) -> list[list[str]]:
    """The final table: suite, arm, tau, nodes, sameness of text, score ..."""
    table = csv.read_csv(results / "report" / "tables" / "arms.csv")
    steady = [name for name in table.column_names if not name.endswith(("_ms", "_per_second"))]
    assert {"suite", "arm", "requests", "new_tokens", "tau", "nodes", "identical", "score"} < set(steady)
    return [[str(value) for value in row.values()] for row in table.select(steady).to_pylist()]


def test_an_uninterrupted_run_leaves_report_and_tracking(uninterrupted: tuple[Path, str]) -> None:
    results, output = uninterrupted
    assert finished(results) == UNITS
    assert unfinished(results) == []
    assert str(results / "report" / "index.html") in output
    assert "mlflow ui --backend-store-uri" in output
    page = (results / "report" / "index.html").read_text()
    assert page.count("data:image/png;base64,") >= 4
    for arm in DEFAULT:
        assert arm in output
    _assert_tracked(results)


def _assert_tracked(results: Path) -> None:
    client = MlflowClient(default_tracking_uri(results))
    (experiment,) = (one for one in client.search_experiments() if one.name == "entmtp-benchmark")
    runs = client.search_runs([experiment.experiment_id])
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert len(parents) == 1
    assert len(runs) == 1 + len(DEFAULT) * len(SUITES)
    assert {run.info.status for run in runs} == {"FINISHED"}


def test_it_runs_as_a_ray_job(
    saved: Saved, environment: dict[str, str], uninterrupted: tuple[Path, str], tmp_path: Path
) -> None:
    job = [sys.executable, "jobs/local.py", "jobs/benchmark.py", *saved.options(), *SIZE, f"--results={tmp_path}"]
    cluster = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
    alone = {name: value for name, value in environment.items() if name not in cluster}
    done = subprocess.run(
        job, cwd=ROOT, env=alone, capture_output=True, text=True, timeout=SECONDS, check=False, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert "ray job submit --working-dir ." in done.stdout
    assert finished(tmp_path) == UNITS
    assert (tmp_path / "report" / "index.html").is_file()
    assert unfinished(tmp_path) == []
    _assert_tracked(tmp_path)
    requests, _ = read_parts(open_store(str(tmp_path / "parts")))
    expected, _ = read_parts(open_store(str(uninterrupted[0] / "parts")))
    assert requests["identical"].to_pylist() == [True] * UNITS * len(DEFAULT)
    assert requests["token_ids"].to_pylist() == expected["token_ids"].to_pylist()
