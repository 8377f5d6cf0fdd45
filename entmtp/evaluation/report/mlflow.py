"""Logging of benchmarks to MLflow, as a run with a nested run per arm and suite; and download of their reports."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from entmtp.errors import EntMTPError
from entmtp.evaluation.analysis.overlap_description import overlap_metrics
from entmtp.evaluation.analysis.summarise import summarise
from entmtp.evaluation.analysis.summary import tables
from entmtp.evaluation.report.run_metrics import arm_metrics, description, overall_metrics
from entmtp.provenance import CHANGED, flatten_provenance
from entmtp.tracking.client import (
    TrackedModel,
    TrackedRun,
    check_model_files,
    connect,
    ensure_experiment,
    log_batch,
    log_models,
    mlflow_errors,
    require_database,
    tracked_run,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

BENCHMARK_EXPERIMENT = "entmtp-benchmark"

_REPORT = "report"  # folder of the report among a run's artifacts
_RUN_ID = re.compile("[0-9a-f]{32}")
_NAMESAKES = 5  # runs of one name whose ids an error lists


def log_benchmark(
    tracking_uri: str,
    experiment: str,
    provenance: Mapping[str, Any],
    requests: pa.Table,
    steps: pa.Table,
    report_folder: Path,
    artifacts: Sequence[TrackedModel],
) -> TrackedRun:
    """Log a benchmark as a parent run with a nested run per arm and suite.

    The parent has the provenance as parameters, the comparisons over all suites as metrics, the tables, the report and
    the logged models. Each nested run has the metrics of its arm on its suite.

    Args:
        tracking_uri: a database such as `default_tracking_uri(results)`, or a tracking server.
        provenance: as in the report; `git_commit` and `command` also become MLflow's own tags.
        requests, steps: rows, as `rows.read_parts` gives them.
        report_folder: written by `report.write_report`.
        artifacts: the heads and banks that were measured.

    Raises:
        EntMTPError: MLflow is missing, refuses the address, or a file of `artifacts` is missing.
    """
    check_model_files(artifacts)
    summary = summarise(requests, steps)
    with mlflow_errors(tracking_uri):
        client = connect(tracking_uri)
        experiment_id = ensure_experiment(client, tracking_uri, experiment)
        tags = {
            "mlflow.note.content": description(summary, provenance),
            "mlflow.source.git.commit": str(provenance.get("git_commit") or "").removesuffix(CHANGED),
            "mlflow.source.name": str(provenance.get("command") or ""),
        }
        with tracked_run(
            client, experiment_id, "benchmark", {name: text for name, text in tags.items() if text}
        ) as parent:
            log_batch(
                client,
                parent,
                overall_metrics(summary) | overlap_metrics(provenance),
                dict(flatten_provenance(provenance)),
            )
            _log_prompts(client, parent, requests)
            for row in summary.arms:
                nested = {"mlflow.parentRunId": parent}
                with tracked_run(client, experiment_id, f"{row.arm} {row.suite}", nested) as run:
                    params = {"suite": row.suite, "arm": row.arm, "source": row.source}
                    log_batch(client, run, arm_metrics(summary, row), params)
            for name, table in tables(summary).items():
                client.log_table(parent, table.to_pydict(), f"tables/{name}.json")
            client.log_artifacts(parent, str(report_folder), _REPORT)
            models = log_models(client, experiment_id, parent, artifacts)
    return TrackedRun(tracking_uri, experiment_id, parent, models)


def fetch_report(tracking_uri: str, run: str, folder: Path, files: Sequence[str]) -> None:
    """Copy `files` of a finished benchmark's report from MLflow into `folder`.

    Args:
        run: the id of the parent run, or its name where no other run has the same.

    Raises:
        EntMTPError: MLflow is missing or refuses the address, there is no such run, it has not finished, or it has no
            such files.
    """
    require_database(tracking_uri)
    with mlflow_errors(tracking_uri):
        client = connect(tracking_uri)
        found = _find_run(client, tracking_uri, run)
        if found.info.status != "FINISHED":
            raise EntMTPError(f"run '{run}' is {found.info.status.lower()}, not finished; finish it, or give another")
        logged = {Path(entry.path).name for entry in client.list_artifacts(found.info.run_id, _REPORT)}
        if missing := [name for name in files if name not in logged]:
            raise EntMTPError(
                f"run '{run}' has no {_REPORT}/{missing[0]}: it is no benchmark of this version; run the same"
                " benchmark again, which reads its finished parts and makes a new run of them"
            )
        for name in files:
            copied = client.download_artifacts(found.info.run_id, f"{_REPORT}/{name}", str(folder))
            Path(copied).replace(folder / name)  # some stores keep the folders above a file, others don't


def _find_run(client: MlflowClient, tracking_uri: str, run: str) -> Run:
    """The run with this id, or the only one with this name."""
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    if _RUN_ID.fullmatch(run):
        wanted = f"attributes.run_id = '{run}'"
    else:
        quote = "'" if '"' in run else '"'
        wanted = f"attributes.run_name = {quote}{run}{quote}"
    found = list(client.search_runs(experiments, wanted))
    if not found:
        raise EntMTPError(f"run '{run}' is unknown at '{tracking_uri}'; give the id that MLflow's page shows")
    if len(found) > 1:
        ids = ", ".join(one.info.run_id for one in found[:_NAMESAKES])
        raise EntMTPError(f"run '{run}': {len(found)} runs have this name; give an id, of the newest: {ids}")
    return found[0]


def _log_prompts(client: MlflowClient, run_id: str, requests: pa.Table) -> None:
    """Log the prompts of each suite as a data set of the run."""
    from mlflow.data.pandas_dataset import from_pandas
    from mlflow.entities import Dataset, DatasetInput, InputTag

    prompts = requests.select(["suite", "source", "prompt_id"]).to_pandas().drop_duplicates()
    inputs = [
        DatasetInput(
            Dataset(**from_pandas(rows.reset_index(drop=True), name=str(suite)).to_dict()),
            [InputTag("mlflow.data.context", "evaluation")],
        )
        for suite, rows in prompts.groupby("suite")
    ]
    client.log_inputs(run_id, datasets=inputs)
