"""Logging of runs to MLflow, with a client of an explicit address, so that no global state changes."""

from __future__ import annotations

import math
import os
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit
from urllib.request import url2pathname

from entmtp.errors import EntMTPError
from entmtp.persistent_paths import check_persistent_path
from entmtp.tracking.quiet import quieten_mlflow

if TYPE_CHECKING:
    from mlflow import MlflowClient

_SQLITE = "sqlite:///"
_SERVERS = ("databricks", "databricks-uc", "uc")  # addresses that look like folders
_LONGEST_PARAM = 6000  # characters that MLflow stores of a parameter
_PARAMS_AT_ONCE = 100  # that MLflow takes in one request


@dataclass(frozen=True, slots=True)
class TrackedModel:
    """Draft heads (a folder) or a tree bank (a file) to log with a run as a logged model."""

    name: str
    path: Path
    kind: Literal["draft-heads", "tree-bank"]


@dataclass(frozen=True, slots=True)
class TrackedRun:
    """A logged run. `open_command` shows it."""

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
    """The command that opens MLflow's page; with a tracking server, the server's address."""
    if tracking_uri.startswith(("http://", "https://")):
        return tracking_uri
    mlflow = Path(sys.executable).with_name("mlflow")  # in a virtual environment that the user's shell need not know
    command = shlex.quote(str(mlflow)) if mlflow.exists() else "mlflow"
    return f"{command} ui --backend-store-uri {shlex.quote(tracking_uri)}"


def check_tracking(tracking_uri: str, experiment: str) -> None:
    """Check that runs can be tracked there, before hours of work.

    Raises:
        EntMTPError: MLflow is not installed, it cannot use this address, its experiment is deleted, or its database
            or folder would be lost with a job.
    """
    if (path := _on_disk(tracking_uri)) is not None:
        check_persistent_path("tracking_uri", path, f"{_SQLITE}/FOLDER/mlflow.db with an absolute path, or a server")
    with mlflow_errors(tracking_uri):
        _known_experiment(connect(tracking_uri), tracking_uri, experiment)


@contextmanager
def mlflow_errors(tracking_uri: str) -> Iterator[None]:
    """Turn errors of MLflow and its database into an EntMTPError of one line."""
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


def connect(tracking_uri: str) -> MlflowClient:
    """A client whose first request has succeeded."""
    from mlflow import MlflowClient

    if not tracking_uri:
        raise EntMTPError(f"tracking URI is empty; give a database such as {_SQLITE}results/mlflow.db")
    client = MlflowClient(tracking_uri=tracking_uri)
    with _few_retries():
        client.search_experiments(max_results=1)
    return client


@contextmanager
def _few_retries() -> Iterator[None]:
    """Limit MLflow to one retry, so that an absent server is noticed in a second and not after minutes."""
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


def ensure_experiment(client: MlflowClient, tracking_uri: str, name: str) -> str:
    """The experiment's id. A new experiment stores its files next to a SQLite database."""
    known = _known_experiment(client, tracking_uri, name)
    return known or client.create_experiment(name, artifact_location=_artifact_location(tracking_uri))


def _known_experiment(client: MlflowClient, tracking_uri: str, name: str) -> str | None:
    """The experiment's id; None if it does not exist yet."""
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
    """The SQLite file; None with a server."""
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


def require_database(tracking_uri: str) -> None:
    """Raise EntMTPError for a SQLite file that does not exist, as MLflow would create an empty one."""
    if (database := _database(tracking_uri)) is not None and not database.exists():
        raise EntMTPError(f"tracking URI '{tracking_uri}': there is no such database; give one that a benchmark filled")


@contextmanager
def tracked_run(client: MlflowClient, experiment_id: str, name: str, tags: Mapping[str, str]) -> Iterator[str]:
    """Start a run and yield its id. It ends with the status of its block."""
    run_id: str = client.create_run(experiment_id, run_name=name, tags=dict(tags)).info.run_id
    try:
        yield run_id
    except BaseException as error:
        client.set_terminated(run_id, run_status(type(error)))
        raise
    client.set_terminated(run_id, "FINISHED")


def run_status(error: type[BaseException] | None) -> str:
    """MLflow's status of a run that ended with this error."""
    if error is None:
        return "FINISHED"
    return "FAILED" if issubclass(error, Exception) else "KILLED"


def log_batch(
    client: MlflowClient, run_id: str, metrics: Mapping[str, float], params: Mapping[str, str], step: int = 0
) -> None:
    """Log metrics, without those that are not finite, and parameters."""
    from mlflow.entities import Metric, Param

    now = time.time_ns() // 1_000_000
    measured = [Metric(name, float(value), now, step) for name, value in metrics.items() if math.isfinite(value)]
    given = [Param(name, text[:_LONGEST_PARAM]) for name, text in params.items()]
    client.log_batch(run_id, metrics=measured, params=given[:_PARAMS_AT_ONCE])
    for start in range(_PARAMS_AT_ONCE, len(given), _PARAMS_AT_ONCE):
        client.log_batch(run_id, params=given[start : start + _PARAMS_AT_ONCE])


def log_models(client: MlflowClient, experiment_id: str, run_id: str, models: Sequence[TrackedModel]) -> dict[str, str]:
    """Log heads and banks as models that the run refers to; return their ids by name."""
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


def check_model_files(models: Sequence[TrackedModel]) -> None:
    """Raise EntMTPError for a model whose file or folder does not exist."""
    for model in models:
        if not model.path.exists():
            raise EntMTPError(f"{model.kind} '{model.name}': '{model.path}' does not exist; give an existing path")
