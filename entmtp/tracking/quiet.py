"""Settings that disable MLflow's telemetry, info logs and progress bars, unless the user sets them otherwise."""

from __future__ import annotations

import os

_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}


def quieten_mlflow() -> None:
    """Set MLflow's environment variables. Call this before MLflow is imported, which reads some of them once."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
