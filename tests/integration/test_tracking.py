"""Tracking against a real MLflow on a SQLite file."""

import json
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from entmtp.errors import EntMTPError
from entmtp.evaluation.report.mlflow import log_benchmark
from entmtp.evaluation.report.report import write_report
from entmtp.evaluation.results.rows import REQUEST_SCHEMA, STEP_SCHEMA, as_table
from entmtp.tracking.client import TrackedModel, TrackedRun, check_tracking, default_tracking_uri
from entmtp.training.mlflow import start_training_run
from tests.helpers.synthetic_rows import make_rows

FACTS = {
    "profile": "quick",
    "git_commit": "0123abc",
    "command": "benchmark --profile quick",
    "versions": {"torch": "2"},
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder whose name needs quoting in a shell; its database is made once."""
    folder = tmp_path_factory.mktemp("results of today")
    check_tracking(default_tracking_uri(folder), "benchmarks")
    return folder


@pytest.fixture(scope="module")
def models(results: Path) -> list[TrackedModel]:
    heads = results / "heads"
    heads.mkdir()
    (heads / "config.json").write_text("{}")
    bank = results / "bank.json"
    bank.write_text('{"task": "humaneval"}')
    return [TrackedModel("hydra-heads", heads, "draft-heads"), TrackedModel("bank-humaneval", bank, "tree-bank")]


@pytest.fixture(scope="module")
def tracked(results: Path, models: list[TrackedModel]) -> TrackedRun:
    rows = make_rows(arms=("autoregressive", "hydra", "entmtp"), suites=("humaneval", "litbench"), prompts=4)
    requests, steps = as_table(rows[0], REQUEST_SCHEMA), as_table(rows[1], STEP_SCHEMA)
    report = results / "report"
    write_report(report, requests, steps, FACTS)
    return log_benchmark(default_tracking_uri(results), "benchmarks", FACTS, requests, steps, report, models)


@pytest.fixture
def client(tracked: TrackedRun) -> MlflowClient:
    return MlflowClient(tracking_uri=tracked.tracking_uri)


def nested_runs(client: MlflowClient, tracked: TrackedRun) -> list[Run]:
    runs = client.search_runs([tracked.experiment_id], f"tags.mlflow.parentRunId = '{tracked.run_id}'")
    return list(runs)


def test_parent_run_holds_facts_and_comparisons(client: MlflowClient, tracked: TrackedRun) -> None:
    run = client.get_run(tracked.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["versions.torch"] == "2"
    assert run.data.tags["mlflow.source.git.commit"] == "0123abc"
    assert "entmtp is faster than hydra" in run.data.tags["mlflow.note.content"]
    assert "not a study" in run.data.tags["mlflow.note.content"]
    metrics = run.data.metrics
    name = "entmtp/speedup_against_hydra"
    assert 1 < metrics[f"{name}_low"] <= metrics[name] <= metrics[f"{name}_high"]


def test_a_nested_run_per_arm_and_suite(client: MlflowClient, tracked: TrackedRun) -> None:
    runs = nested_runs(client, tracked)
    assert len(runs) == 3 * 2
    assert {run.info.status for run in runs} == {"FINISHED"}
    hydra = next(run for run in runs if run.data.params == {"arm": "hydra", "suite": "litbench", "source": "sample"})
    assert hydra.data.metrics["tau"] > 1
    assert hydra.data.metrics["speedup_against_autoregressive_high"] < 1
    assert hydra.data.metrics["identical_share"] == 1
    assert 0 < hydra.data.metrics["acceptance_depth_2"] < hydra.data.metrics["acceptance_depth_1"]


def test_report_and_tables_are_artifacts_in_the_results_folder(
    client: MlflowClient, tracked: TrackedRun, results: Path
) -> None:
    assert {"report/index.html", "report/speedup.png"} <= {
        file.path for file in client.list_artifacts(tracked.run_id, "report")
    }
    table = json.loads(Path(client.download_artifacts(tracked.run_id, "tables/arms.json")).read_text())
    assert len(table["data"]) == 3 * 2
    assert (results / "mlartifacts" / tracked.run_id).is_dir()


def test_heads_banks_and_prompts_are_linked(client: MlflowClient, tracked: TrackedRun) -> None:
    run = client.get_run(tracked.run_id)
    assert run.inputs is not None
    linked = {model.model_id for model in run.inputs.model_inputs}
    assert linked == set(tracked.model_ids.values())
    heads = client.get_logged_model(tracked.model_ids["hydra-heads"])
    assert (str(heads.status), heads.model_type) == ("READY", "draft-heads")
    bank = client.get_logged_model(tracked.model_ids["bank-humaneval"])
    kept = Path(bank.artifact_location.removeprefix("file://").replace("%20", " ")) / "bank.json"
    assert json.loads(kept.read_text()) == {"task": "humaneval"}
    assert {item.dataset.name for item in run.inputs.dataset_inputs} == {"humaneval", "litbench"}


def test_open_command_is_one_that_a_shell_takes(tracked: TrackedRun) -> None:
    shown = subprocess.run(["bash", "-c", f"printf '%s\\n' {tracked.open_command}"], capture_output=True, check=True)
    command, *arguments = shown.stdout.decode().splitlines()
    assert arguments == ["ui", "--backend-store-uri", tracked.tracking_uri]
    subprocess.run([command, "--version"], check=True, capture_output=True)


def test_global_state_of_mlflow_is_left_alone(tracked: TrackedRun) -> None:
    assert mlflow.active_run() is None
    assert mlflow.get_tracking_uri() != tracked.tracking_uri


def interrupted_training(uri: str) -> str:
    """A run whose process was told to stop after ten steps; gives its id."""
    run = start_training_run(uri, "training", {"steps": 100, "rate": 0.1})
    with suppress(KeyboardInterrupt), run:
        run.log(10, {"loss": 2.0})
        raise KeyboardInterrupt
    return run.run_id


def test_training_run_can_be_resumed(results: Path, client: MlflowClient) -> None:
    uri = default_tracking_uri(results)
    run_id = interrupted_training(uri)
    assert client.get_run(run_id).info.status == "KILLED"

    with start_training_run(uri, "training", {"steps": 200, "rate": 0.1}, run_id) as resumed:
        assert client.get_run(run_id).info.status == "RUNNING"
        resumed.log(20, {"loss": 1.5, "undefined": float("nan")})
        resumed.finish()

    kept = client.get_run(run_id)
    assert (resumed.run_id, kept.info.status) == (run_id, "FINISHED")
    assert kept.data.params == {"steps": "100", "rate": "0.1"}
    assert kept.data.tags["resumed.steps"] == "200"
    assert "resumed.rate" not in kept.data.tags
    assert [(entry.step, entry.value) for entry in client.get_metric_history(run_id, "loss")] == [
        (10, 2),
        (20, 1.5),
    ]


def test_failed_training_run_is_marked(results: Path, client: MlflowClient) -> None:
    with pytest.raises(ZeroDivisionError), start_training_run(default_tracking_uri(results), "training", {}) as run:
        raise ZeroDivisionError
    assert client.get_run(run.run_id).info.status == "FAILED"


@pytest.mark.parametrize(
    "uri", ["", "nonsense://x", "sqlite:", "./mlruns", "http://127.0.0.1:9", "sqlite:////etc/hosts"]
)
def test_bad_address_is_one_line(uri: str) -> None:
    with pytest.raises(EntMTPError, match="tracking URI") as caught:
        check_tracking(uri, "benchmarks")
    assert "\n" not in str(caught.value)


def test_a_deleted_experiment_is_told_before_any_work(results: Path, client: MlflowClient) -> None:
    uri = default_tracking_uri(results)
    client.delete_experiment(client.create_experiment("gone"))
    with pytest.raises(EntMTPError, match="experiment 'gone' is deleted at"):
        check_tracking(uri, "gone")


def test_unknown_run_is_one_line(results: Path) -> None:
    with pytest.raises(EntMTPError, match="no-such-run"):
        start_training_run(default_tracking_uri(results), "training", {}, "no-such-run")


def test_missing_artifact_is_told_before_anything_is_logged(results: Path, client: MlflowClient) -> None:
    rows = make_rows(arms=("autoregressive",), suites=("humaneval",), prompts=1)
    requests, steps = as_table(rows[0], REQUEST_SCHEMA), as_table(rows[1], STEP_SCHEMA)
    gone = TrackedModel("medusa-heads", results / "gone", "draft-heads")
    with pytest.raises(EntMTPError, match="medusa-heads"):
        log_benchmark(default_tracking_uri(results), "never made", {}, requests, steps, results, [gone])
    assert client.get_experiment_by_name("never made") is None


def test_library_says_nothing_while_it_tracks(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib\n"
        "from entmtp.tracking.client import default_tracking_uri\n"
        "from entmtp.training.mlflow import start_training_run\n"
        "uri = default_tracking_uri(pathlib.Path(sys.argv[1]))\n"
        "start_training_run(uri, 'quiet', {'a': 1}).finish()\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
