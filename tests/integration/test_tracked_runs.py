"""Benchmarks compared out of a real MLflow on a SQLite file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import typer
from mlflow import MlflowClient
from typer.testing import CliRunner

from entmtp.errors import EntMTPError
from entmtp.evaluation.report.load_run import open_run
from entmtp.evaluation.report.mlflow import log_benchmark
from entmtp.evaluation.report.report import write_report
from entmtp.evaluation.results.rows import REQUEST_SCHEMA, STEP_SCHEMA, as_table
from entmtp.tracking.client import TrackedRun, default_tracking_uri
from entmtp.training.mlflow import start_training_run
from jobs import compare as job
from tests.helpers.blank_figures import blank_figures
from tests.helpers.synthetic_rows import make_rows

FACTS = {"settings": {"max_new_tokens": 64, "repetitions": 3}}


def benchmark(folder: Path, hardware: str, factor: float) -> TrackedRun:
    """A finished benchmark whose requests took `factor` times as long as they would."""
    rows, steps = make_rows(arms=("autoregressive", "hydra"), suites=("gsm8k",), prompts=4)
    requests = as_table([replace(row, seconds=row.seconds * factor) for row in rows], REQUEST_SCHEMA)
    provenance = FACTS | {"hardware": hardware}
    report = folder / hardware / "report"
    write_report(report, requests, as_table(steps, STEP_SCHEMA), provenance)
    uri = default_tracking_uri(folder)
    return log_benchmark(uri, "benchmarks", provenance, requests, as_table(steps, STEP_SCHEMA), report, [])


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> list[TrackedRun]:
    folder = tmp_path_factory.mktemp("results")
    with blank_figures():
        return [benchmark(folder, "old", 1.0), benchmark(folder, "new", 1.25)]


def compare(*arguments: str) -> tuple[int, str]:
    app = typer.Typer()
    app.command()(job.main)
    done = CliRunner().invoke(app, list(arguments))
    return done.exit_code, done.output


def test_runs_are_found_by_id_and_beside_folders(tracked: list[TrackedRun], tmp_path: Path) -> None:
    old, new = tracked
    runs = (f"old={old.run_id}", f"new={new.run_id}", "--tracking-uri", old.tracking_uri)
    code, said = compare(*runs, "--output", str(tmp_path), "--fail-below", "0.97")
    assert code == 1
    assert "regression: hydra on gsm8k: new is 0.800x [0.800, 0.800] as fast as old" in said
    assert "| hardware | old | new |" in (tmp_path / "comparison.md").read_text()
    results = Path(old.tracking_uri.removeprefix("sqlite:///")).parent / "new"
    assert compare(f"old={old.run_id}", str(results), "--tracking-uri", old.tracking_uri)[0] == 0


def test_a_name_that_one_run_has_is_enough(tracked: list[TrackedRun]) -> None:
    old, new = tracked
    uri = old.tracking_uri
    with pytest.raises(EntMTPError, match="2 runs have this name; give an id") as caught:
        open_run("benchmark", uri)
    assert old.run_id in str(caught.value)
    MlflowClient(tracking_uri=uri).update_run(new.run_id, name="on 'the new' one")
    assert open_run("on 'the new' one", uri).provenance["hardware"] == "new"


def test_what_is_no_finished_benchmark_is_told_in_a_line(tracked: list[TrackedRun], tmp_path: Path) -> None:
    uri = tracked[0].tracking_uri
    training = start_training_run(uri, "training", {})
    refused = {
        "0" * 32: "is unknown",
        "never": "is unknown",
        "hydra gsm8k": "runs have this name",  # the arm's, in both benchmarks
        training.run_id: "is running, not finished",
        "'\"": "MLflow says",
    }
    for run, reason in refused.items():
        with pytest.raises(EntMTPError, match=reason) as caught:
            open_run(run, uri)
        assert "\n" not in str(caught.value)
    training.finish()
    with pytest.raises(EntMTPError, match=r"has no report/summary\.json"):
        open_run(training.run_id, uri)
    absent = default_tracking_uri(tmp_path)
    with pytest.raises(EntMTPError, match="no such database"):
        open_run("benchmark", absent)
    assert list(tmp_path.iterdir()) == []
