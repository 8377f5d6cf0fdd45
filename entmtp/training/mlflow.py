"""Tracking of trainings in MLflow; an interrupted training continues in the same run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from entmtp.files import write_text
from entmtp.provenance import flatten_provenance
from entmtp.tracking.client import connect, ensure_experiment, log_batch, mlflow_errors, run_status

if TYPE_CHECKING:
    from mlflow import MlflowClient

TRAINING_EXPERIMENT = "entmtp-training"


class TrainingRun:
    """A training run in progress; as a context manager it ends as failed if its block raises."""

    def __init__(self, client: MlflowClient, tracking_uri: str, run_id: str) -> None:
        self._client = client
        self._tracking_uri = tracking_uri
        self._ended = False
        self.run_id = run_id

    def __enter__(self) -> TrainingRun:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._ended:
            self._end(run_status(kind))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log a step's metrics in one round trip."""
        with mlflow_errors(self._tracking_uri):
            log_batch(self._client, self.run_id, metrics, {}, step=step)

    def finish(self) -> None:
        """End the run as finished."""
        self._end("FINISHED")

    def _end(self, status: str) -> None:
        with mlflow_errors(self._tracking_uri):
            self._client.set_terminated(self.run_id, status)
        self._ended = True


def start_training_run(
    tracking_uri: str, experiment: str, params: Mapping[str, Any], run_id: str | None = None
) -> TrainingRun:
    """Start a training run, or resume `run_id`.

    A resumed run keeps its original parameters; those that have changed since are logged as `resumed.*` tags.

    Raises:
        EntMTPError: MLflow is missing, refuses the address, or has no such run.
    """
    flat = dict(flatten_provenance(params))
    with mlflow_errors(tracking_uri):
        client = connect(tracking_uri)
        if run_id is None:
            experiment_id = ensure_experiment(client, tracking_uri, experiment)
            run = client.create_run(experiment_id, run_name="training")
            log_batch(client, run.info.run_id, {}, flat)
        else:
            run = client.get_run(run_id)
            client.update_run(run_id, status="RUNNING")
            original = run.data.params
            log_batch(client, run_id, {}, {name: text for name, text in flat.items() if name not in original})
            for name, text in flat.items():
                if original.get(name, text) != text:
                    client.set_tag(run_id, f"resumed.{name}", text)
        return TrainingRun(client, tracking_uri, run.info.run_id)


@contextmanager
def tracked_training(
    tracking_uri: str | None, folder: Path, settings: Mapping[str, Any]
) -> Iterator[Callable[[int, Mapping[str, float]], None]]:
    """Track a training in one run, whose id is stored in `folder` so that an interrupted training resumes it.

    Each kind of heads has a run of its own. Without a tracking URI nothing is logged.
    """
    if tracking_uri is None:
        yield lambda step, metrics: None
        return
    id_file = folder / f"{settings['kind']}.mlflow-run-id"
    run_id = id_file.read_text(encoding="utf-8").strip() if id_file.exists() else None
    with start_training_run(tracking_uri, TRAINING_EXPERIMENT, settings, run_id) as run:
        write_text(id_file, run.run_id)
        yield run.log
        run.finish()
