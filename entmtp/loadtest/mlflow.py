"""Logging of load tests to MLflow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa

from entmtp.loadtest.levels import Level
from entmtp.loadtest.load_summary import LoadSummary
from entmtp.provenance import flatten_provenance
from entmtp.tracking.client import TrackedRun, connect, ensure_experiment, log_batch, mlflow_errors, tracked_run

LOAD_EXPERIMENT = "entmtp-load"


def log_load(
    tracking_uri: str,
    experiment: str,
    provenance: Mapping[str, Any],
    summaries: Mapping[Level, Sequence[LoadSummary]],
    tables: Mapping[str, pa.Table],
    plot: Path,
) -> TrackedRun:
    """Log a load test as a parent run with a nested run per level and endpoint.

    The parent has the provenance as parameters, the tables and the figure of throughput against latency.

    Raises:
        EntMTPError: MLflow is missing, or refuses the address.
    """
    with mlflow_errors(tracking_uri):
        client = connect(tracking_uri)
        experiment_id = ensure_experiment(client, tracking_uri, experiment)
        with tracked_run(client, experiment_id, "load", {}) as parent:
            log_batch(client, parent, {}, dict(flatten_provenance(provenance)))
            for name, table in tables.items():
                client.log_table(parent, table.to_pydict(), f"{name}.json")
            client.log_artifact(parent, str(plot))
            for level, found in summaries.items():
                given = {name: str(value) for name, value in asdict(level).items() if value is not None}
                for one in found:
                    nested = {"mlflow.parentRunId": parent}
                    with tracked_run(client, experiment_id, f"{one.endpoint}, {level}", nested) as run:
                        log_batch(client, run, one.metrics(), {"endpoint": one.endpoint, **given})
    return TrackedRun(tracking_uri, experiment_id, parent, {})
