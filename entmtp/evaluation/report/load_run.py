"""Loading of a finished benchmark run from its report: in a results folder, or among a run's artifacts in MLflow."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from entmtp.errors import EntMTPError
from entmtp.evaluation.report.mlflow import fetch_report
from entmtp.evaluation.report.report import REQUESTS, SUMMARY
from entmtp.evaluation.results.rows import read_requests
from entmtp.evaluation.results.storage import open_store
from entmtp.provenance import flatten_provenance

_LARGEST = {SUMMARY: 64 << 20, REQUESTS: 2 << 30}  # bytes of a file; 13 arms on 100 prompts take a thousandth of it


@dataclass(frozen=True)
class LoadedRun:
    """A finished run, loaded from its report.

    Attributes:
        name: given by the user.
        provenance: of its numbers, by dotted name.
        requests: one row per request (`rows.RequestRow`).
    """

    name: str
    provenance: Mapping[str, str]
    requests: pa.Table


def open_run(given: str, tracking_uri: str | None) -> LoadedRun:
    """Load the run that `given` names: RUN or NAME=RUN, where RUN is a results folder or an id or name in MLflow.

    Raises:
        EntMTPError: there is no such run, it is not finished, or its files are not a report of this version.
    """
    name, equals, source = given.partition("=")
    if not equals or Path(given).exists():
        name = source = given
    if not name or not source:
        raise EntMTPError(f"run: '{given}' is not RUN or NAME=RUN; give a results folder or a run of MLflow")
    if Path(source).is_dir():
        return read_run(name, Path(source) / "report")
    if tracking_uri is None:
        raise EntMTPError(
            f"run: there is no folder '{source}'; give one, or --tracking-uri where it is a run of MLflow"
        )
    with tempfile.TemporaryDirectory() as folder:
        fetch_report(tracking_uri, source, Path(folder), (SUMMARY, REQUESTS))
        return read_run(name, Path(folder))


def read_run(name: str, report: Path) -> LoadedRun:
    """Load a run from the folder that `report.write_report` wrote.

    Raises:
        EntMTPError: a file is missing, damaged or of another version, or its numbers can't be.
    """
    for file, largest in _LARGEST.items():
        path = report / file
        if not path.is_file():
            raise EntMTPError(
                f"run '{name}': {path} does not exist; run the benchmark again, which only reads its finished parts"
            )
        if path.stat().st_size > largest:
            raise EntMTPError(f"run '{name}': {path} has more than {largest >> 20} MiB; no report has")
    try:
        requests = read_requests(open_store(str(report)), REQUESTS)
    except EntMTPError as error:
        raise EntMTPError(f"run '{name}': {error}") from error
    if not requests.num_rows or not pc.all(_are_measured(requests)).as_py():
        raise EntMTPError(f"run '{name}': {report / REQUESTS} has no requests, or some that took no time or no step")
    return LoadedRun(name, dict(flatten_provenance(_provenance(name, report / SUMMARY))), requests)


def _are_measured(requests: pa.Table) -> Any:
    """Whether each request has times and steps above 0."""
    seconds = pc.and_(pc.is_finite(requests["seconds"]), pc.greater(requests["seconds"], 0))
    counts = pc.and_(pc.greater(requests["steps"], 0), pc.greater(requests["new_tokens"], 0))
    return pc.and_(seconds, counts)


def _provenance(name: str, path: Path) -> Mapping[str, Any]:
    try:
        provenance = json.loads(path.read_text(encoding="utf-8-sig"))["facts"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise EntMTPError(
            f"run '{name}': {path} is not a report's summary ({error}); run the benchmark again"
        ) from error
    if not isinstance(provenance, dict):
        raise EntMTPError(f"run '{name}': {path} has no facts; run the benchmark again")
    return provenance
