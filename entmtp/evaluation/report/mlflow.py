"""Results in MLflow, which nothing else of the library reads or writes; `tracking_names` asks only for its rules.

Everything goes through a client that is given its address, so no global state of MLflow changes.
"""

import math
import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit
from urllib.request import url2pathname

import pyarrow as pa

from entmtp.errors import EntMTPError
from entmtp.evaluation.analysis.overlap_description import overlap_metrics
from entmtp.evaluation.analysis.summarise import summarise
from entmtp.evaluation.analysis.summary import tables
from entmtp.evaluation.report.quiet_mlflow import quieten_mlflow
from entmtp.evaluation.report.run_metrics import arm_metrics, description, overall_metrics
from entmtp.evaluation.results.provenance import flat_facts
from entmtp.evaluation.results.storage import check_lasting
from entmtp.files import write_text

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

    from entmtp.loadtest.levels import Level
    from entmtp.loadtest.load_summary import LoadSummary

BENCHMARK_EXPERIMENT = "entmtp-benchmark"
LOAD_EXPERIMENT = "entmtp-load"
TRAINING_EXPERIMENT = "entmtp-training"

_SQLITE = "sqlite:///"
_SERVERS = ("databricks", "databricks-uc", "uc")  # addresses that look like folders
_REPORT = "report"  # where a run keeps the report among its artifacts
_LONGEST_PARAM = 6000  # characters that MLflow stores of a parameter
_PARAMS_AT_ONCE = 100  # that MLflow takes in one request
_RUN_ID = re.compile("[0-9a-f]{32}")
_NAMESAKES = 5  # whose ids are told


@dataclass(frozen=True, slots=True)
class TrackedModel:
    """Draft heads (a folder) or a tree bank (a file) to be kept with a run as a logged model."""

    name: str
    path: Path
    kind: Literal["draft-heads", "tree-bank"]


@dataclass(frozen=True, slots=True)
class TrackedRun:
    """Where a run went. `open_command` shows it."""

    tracking_uri: str
    experiment_id: str
    run_id: str
    model_ids: Mapping[str, str]  # by the name of the tracked model

    @property
    def open_command(self) -> str:
        return open_command(self.tracking_uri)


def default_tracking_uri(results: Path) -> str:
    """The database file inside a results folder."""
    return f"{_SQLITE}{results.resolve() / 'mlflow.db'}"


def open_command(tracking_uri: str) -> str:
    """What to type to see the page; with a tracking server, the server's address."""
    if tracking_uri.startswith(("http://", "https://")):
        return tracking_uri
    mlflow = Path(sys.executable).with_name("mlflow")  # in a virtual environment that the user's shell need not know
    command = shlex.quote(str(mlflow)) if mlflow.exists() else "mlflow"
    return f"{command} ui --backend-store-uri {shlex.quote(tracking_uri)}"


def check_tracking(tracking_uri: str, experiment: str) -> None:
    """Fail now, and not after hours of work, if nothing can be tracked there.

    Raises:
        EntMTPError: MLflow is not installed, it cannot use this address, its experiment is deleted, or its database
            or folder would be lost with a job.
    """
    if (kept := _on_disk(tracking_uri)) is not None:
        check_lasting("tracking_uri", kept, f"{_SQLITE}/FOLDER/mlflow.db with an absolute path, or a server")
    with _told_plainly(tracking_uri):
        _known_experiment(_connect(tracking_uri), tracking_uri, experiment)


def log_benchmark(
    tracking_uri: str,
    experiment: str,
    facts: Mapping[str, Any],
    requests: pa.Table,
    steps: pa.Table,
    report_folder: Path,
    artifacts: Sequence[TrackedModel],
) -> TrackedRun:
    """Log a benchmark as a parent run with a nested run per arm and suite.

    The parent holds the facts as parameters, the comparisons over all suites as metrics, the tables, the report and
    the logged models; each nested run holds what its arm did on its suite.

    Args:
        tracking_uri: a database such as `default_tracking_uri(results)`, or a tracking server.
        facts: as in the report; `git_commit` and `command` also become MLflow's own tags.
        requests, steps: rows, as `rows.read_parts` gives them.
        report_folder: what `report.write_report` filled.
        artifacts: the heads and banks that were measured.

    Raises:
        EntMTPError: MLflow is missing, refuses the address, or a file of `artifacts` is missing.
    """
    _all_there(artifacts)
    summary = summarise(requests, steps)
    with _told_plainly(tracking_uri):
        client = _connect(tracking_uri)
        experiment_id = _experiment(client, tracking_uri, experiment)
        tags = {
            "mlflow.note.content": description(summary, facts),
            "mlflow.source.git.commit": str(facts.get("git_commit") or ""),
            "mlflow.source.name": str(facts.get("command") or ""),
        }
        with _run(client, experiment_id, "benchmark", {name: text for name, text in tags.items() if text}) as parent:
            _log_batch(client, parent, overall_metrics(summary) | overlap_metrics(facts), dict(flat_facts(facts)))
            _log_prompts(client, parent, requests)
            for row in summary.arms:
                nested = {"mlflow.parentRunId": parent}
                with _run(client, experiment_id, f"{row.arm} {row.suite}", nested) as run:
                    params = {"suite": row.suite, "arm": row.arm, "source": row.source}
                    _log_batch(client, run, arm_metrics(summary, row), params)
            for name, table in tables(summary).items():
                client.log_table(parent, table.to_pydict(), f"tables/{name}.json")
            client.log_artifacts(parent, str(report_folder), _REPORT)
            models = _log_models(client, experiment_id, parent, artifacts)
    return TrackedRun(tracking_uri, experiment_id, parent, models)


def fetch_report(tracking_uri: str, run: str, folder: Path, files: Sequence[str]) -> None:
    """Copy `files` of a finished benchmark's report from MLflow into `folder`.

    Args:
        run: the id of the parent run, or its name where no other run has the same.

    Raises:
        EntMTPError: MLflow is missing or refuses the address, there is no such run, it has not finished, or it has no
            such files.
    """
    _refuse_absent_database(tracking_uri)
    with _told_plainly(tracking_uri):
        client = _connect(tracking_uri)
        found = _find_run(client, tracking_uri, run)
        if found.info.status != "FINISHED":
            raise EntMTPError(f"run '{run}' is {found.info.status.lower()}, not finished; finish it, or give another")
        held = {Path(entry.path).name for entry in client.list_artifacts(found.info.run_id, _REPORT)}
        if missing := [name for name in files if name not in held]:
            raise EntMTPError(
                f"run '{run}' holds no {_REPORT}/{missing[0]}: it is no benchmark of this version; run the same"
                " benchmark again, which reads its finished parts and makes a new run of them"
            )
        for name in files:
            copied = client.download_artifacts(found.info.run_id, f"{_REPORT}/{name}", str(folder))
            Path(copied).replace(folder / name)  # stores differ in whether they keep the folders above a file


def log_load(
    tracking_uri: str,
    experiment: str,
    facts: Mapping[str, Any],
    summaries: Mapping["Level", Sequence["LoadSummary"]],
    tables: Mapping[str, pa.Table],
    plot: Path,
) -> TrackedRun:
    """Log a load test as a parent run with a nested run per level and endpoint.

    The parent holds the facts as parameters, the tables and the figure of throughput against latency.

    Raises:
        EntMTPError: MLflow is missing, or refuses the address.
    """
    with _told_plainly(tracking_uri):
        client = _connect(tracking_uri)
        experiment_id = _experiment(client, tracking_uri, experiment)
        with _run(client, experiment_id, "load", {}) as parent:
            _log_batch(client, parent, {}, dict(flat_facts(facts)))
            for name, table in tables.items():
                client.log_table(parent, table.to_pydict(), f"{name}.json")
            client.log_artifact(parent, str(plot))
            for level, found in summaries.items():
                given = {name: str(value) for name, value in asdict(level).items() if value is not None}
                for one in found:
                    nested = {"mlflow.parentRunId": parent}
                    with _run(client, experiment_id, f"{one.endpoint}, {level}", nested) as run:
                        _log_batch(client, run, one.metrics(), {"endpoint": one.endpoint, **given})
    return TrackedRun(tracking_uri, experiment_id, parent, {})


class TrainingRun:
    """A training run in progress; as a context manager it ends as failed when its block does."""

    def __init__(self, client: "MlflowClient", tracking_uri: str, experiment_id: str, run_id: str) -> None:
        self._client = client
        self._tracking_uri = tracking_uri
        self._experiment_id = experiment_id
        self._ended = False
        self.run_id = run_id

    def __enter__(self) -> "TrainingRun":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._ended:
            self._end(_status(kind))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record metrics of a step in one round trip."""
        with _told_plainly(self._tracking_uri):
            _log_batch(self._client, self.run_id, metrics, {}, step=step)

    def finish(self, artifacts: Sequence[TrackedModel]) -> TrackedRun:
        """Keep what was trained as logged models and end the run."""
        _all_there(artifacts)
        with _told_plainly(self._tracking_uri):
            models = _log_models(self._client, self._experiment_id, self.run_id, artifacts)
        self._end("FINISHED")
        return TrackedRun(self._tracking_uri, self._experiment_id, self.run_id, models)

    def _end(self, status: str) -> None:
        with _told_plainly(self._tracking_uri):
            self._client.set_terminated(self.run_id, status)
        self._ended = True


def start_training_run(
    tracking_uri: str, experiment: str, params: Mapping[str, Any], run_id: str | None = None
) -> TrainingRun:
    """Start a training run, or go on with `run_id`.

    A resumed run keeps the parameters that it began with; those that have changed since are kept as `resumed.*` tags.

    Raises:
        EntMTPError: MLflow is missing, refuses the address, or has no such run.
    """
    flat = dict(flat_facts(params))
    with _told_plainly(tracking_uri):
        client = _connect(tracking_uri)
        if run_id is None:
            experiment_id = _experiment(client, tracking_uri, experiment)
            run = client.create_run(experiment_id, run_name="training")
            _log_batch(client, run.info.run_id, {}, flat)
        else:
            run = client.get_run(run_id)
            client.update_run(run_id, status="RUNNING")
            begun = run.data.params
            _log_batch(client, run_id, {}, {name: text for name, text in flat.items() if name not in begun})
            for name, text in flat.items():
                if begun.get(name, text) != text:
                    client.set_tag(run_id, f"resumed.{name}", text)
        return TrainingRun(client, tracking_uri, run.info.experiment_id, run.info.run_id)


@contextmanager
def tracked_training(
    tracking_uri: str | None, output: Path, settings: Mapping[str, Any]
) -> Iterator[Callable[[int, Mapping[str, float]], None]]:
    """Record a training in one run however often it is interrupted (its id is kept in `output`).

    Without an address nothing is recorded.
    """
    if tracking_uri is None:
        yield lambda step, metrics: None
        return
    kept = output / "mlflow-run-id"
    run_id = kept.read_text(encoding="utf-8").strip() if kept.exists() else None
    with start_training_run(tracking_uri, TRAINING_EXPERIMENT, settings, run_id) as run:
        write_text(kept, run.run_id)
        yield run.log
        run.finish([])


@contextmanager
def _told_plainly(tracking_uri: str) -> Iterator[None]:
    """Turn what MLflow and its database raise into one line."""
    quieten_mlflow()
    try:
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError
    except ImportError as error:
        raise EntMTPError("tracking needs MLflow, which is not installed; pip install 'entmtp[mlflow]'") from error
    try:
        yield
    except (MlflowException, SQLAlchemyError, ImportError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise EntMTPError(
            f"tracking URI '{tracking_uri}': MLflow says '{reason}'; "
            f"give a database such as {_SQLITE}results/mlflow.db or a running server such as http://host:5000"
        ) from error


def _connect(tracking_uri: str) -> "MlflowClient":
    """A client whose first request has been answered."""
    from mlflow import MlflowClient

    if not tracking_uri:
        raise EntMTPError(f"tracking URI is empty; give a database such as {_SQLITE}results/mlflow.db")
    client = MlflowClient(tracking_uri=tracking_uri)
    with _few_retries():
        client.search_experiments(max_results=1)
    return client


@contextmanager
def _few_retries() -> Iterator[None]:
    """A server that is not there is found out in a second, not after minutes of MLflow's patience."""
    name = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _experiment(client: "MlflowClient", tracking_uri: str, name: str) -> str:
    """The experiment's id; a new one keeps its files beside a SQLite database."""
    known = _known_experiment(client, tracking_uri, name)
    return known or client.create_experiment(name, artifact_location=_artifact_location(tracking_uri))


def _known_experiment(client: "MlflowClient", tracking_uri: str, name: str) -> str | None:
    """The experiment's id; None if it is not there yet."""
    known = client.get_experiment_by_name(name)
    if known is not None and known.lifecycle_stage == "deleted":
        raise EntMTPError(
            f"experiment '{name}' is deleted at '{tracking_uri}'; restore it there ('mlflow experiments restore"
            f" --experiment-id {known.experiment_id}'), or give another --tracking-uri"
        )
    return None if known is None else str(known.experiment_id)


def _artifact_location(tracking_uri: str) -> str | None:
    database = _database(tracking_uri)
    return None if database is None else (database.resolve().parent / "mlartifacts").as_uri()


def _database(tracking_uri: str) -> Path | None:
    """The SQLite file; None with a server, which knows its own place."""
    if not tracking_uri.startswith(_SQLITE):
        return None
    return Path(tracking_uri.removeprefix(_SQLITE).partition("?")[0])


def _on_disk(tracking_uri: str) -> Path | None:
    """The SQLite file, or the folder that `./mlruns` or `file:mlruns` names; None with a server."""
    if (database := _database(tracking_uri)) is not None:
        return database
    address = urlsplit(tracking_uri)
    if not tracking_uri or tracking_uri in _SERVERS or address.scheme not in ("", "file"):
        return None
    return Path(url2pathname(address.path))


def _refuse_absent_database(tracking_uri: str) -> None:
    """MLflow would make an empty one."""
    if (database := _database(tracking_uri)) is not None and not database.exists():
        raise EntMTPError(f"tracking URI '{tracking_uri}': there is no such database; give one that a benchmark filled")


def _find_run(client: "MlflowClient", tracking_uri: str, run: str) -> "Run":
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


@contextmanager
def _run(client: "MlflowClient", experiment_id: str, name: str, tags: Mapping[str, str]) -> Iterator[str]:
    """A run that ends as its block does; gives its id."""
    run_id: str = client.create_run(experiment_id, run_name=name, tags=dict(tags)).info.run_id
    try:
        yield run_id
    except BaseException as error:
        client.set_terminated(run_id, _status(type(error)))
        raise
    client.set_terminated(run_id, "FINISHED")


def _status(error: type[BaseException] | None) -> str:
    if error is None:
        return "FINISHED"
    return "FAILED" if issubclass(error, Exception) else "KILLED"


def _log_batch(
    client: "MlflowClient", run_id: str, metrics: Mapping[str, float], params: Mapping[str, str], step: int = 0
) -> None:
    from mlflow.entities import Metric, Param

    now = time.time_ns() // 1_000_000
    measured = [Metric(name, float(value), now, step) for name, value in metrics.items() if math.isfinite(value)]
    given = [Param(name, text[:_LONGEST_PARAM]) for name, text in params.items()]
    client.log_batch(run_id, metrics=measured, params=given[:_PARAMS_AT_ONCE])
    for start in range(_PARAMS_AT_ONCE, len(given), _PARAMS_AT_ONCE):
        client.log_batch(run_id, params=given[start : start + _PARAMS_AT_ONCE])


def _log_prompts(client: "MlflowClient", run_id: str, requests: pa.Table) -> None:
    """The prompts of each suite as a data set that the run used."""
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


def _log_models(
    client: "MlflowClient", experiment_id: str, run_id: str, models: Sequence[TrackedModel]
) -> dict[str, str]:
    """Heads and banks as logged models that the run refers to."""
    from mlflow.entities import LoggedModelInput

    ids: dict[str, str] = {}
    for model in models:
        logged = client.create_logged_model(experiment_id, model.name, source_run_id=run_id, model_type=model.kind)
        log = client.log_model_artifacts if model.path.is_dir() else client.log_model_artifact
        log(logged.model_id, str(model.path))
        client.finalize_logged_model(logged.model_id, "READY")
        ids[model.name] = logged.model_id
    if ids:
        client.log_inputs(run_id, models=[LoggedModelInput(model_id) for model_id in ids.values()])
    return ids


def _all_there(models: Sequence[TrackedModel]) -> None:
    for model in models:
        if not model.path.exists():
            raise EntMTPError(f"{model.kind} '{model.name}': '{model.path}' does not exist; give an existing path")
