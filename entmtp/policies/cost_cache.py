"""Step costs on disk: the measurement made once per machine, and its corrections learned from real steps.

Both are files in ``costs/`` of the cache folder, named after all that a step's time depends on. Writes are atomic, so
that replicas can share the files: the last writer wins.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from entmtp.errors import EntMTPError
from entmtp.files import write_text
from entmtp.policies.step_cost import CostTable

MAX_BYTES = 2**22

_log = logging.getLogger(__name__)


def cost_path(
    folder: Path, hardware: str, model_fingerprint: str, heads_fingerprint: str, kernels: str, batch: int = 1
) -> Path:
    """Path of the measured step cost of this model with these heads and ``kernels`` on this hardware."""
    parts = (hardware, model_fingerprint, heads_fingerprint, kernels, str(batch))
    return folder / "costs" / f"{_key(*parts)}.json"


def correction_path(folder: Path, hardware: str, model_fingerprint: str, heads_fingerprint: str, kernels: str) -> Path:
    """Path of the corrections of all batch sizes; arguments are those of :func:`cost_path`."""
    return folder / "costs" / f"{_key(hardware, model_fingerprint, heads_fingerprint, kernels)}.learnt.json"


def _key(*parts: str) -> str:
    return hashlib.sha256("|".join(parts).encode()).hexdigest()[:16]


def read_cost(path: Path, say: Callable[[str], None]) -> CostTable | None:
    """Read the cached cost; None if it is absent or of an older format, which ``say`` reports.

    Raises:
        EntMTPError: if the file is not a cost table or has holes.
    """
    if not path.is_file():
        return None
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8-sig"))
        if isinstance(content, dict) and content.get("format") != 2:
            say(f"step costs in {path} are of an older format; they are measured again")
            return None
        return CostTable.model_validate(content)
    except ValueError as error:
        raise EntMTPError(f"cost: {path} is not a complete step-cost table; remove it to measure again") from error


def write_cost(path: Path, cost: CostTable) -> None:
    """Write a measured cost atomically: a reader never sees half a file."""
    write_text(path, cost.model_dump_json(indent=1))


class CostCorrection(BaseModel):
    """Correction of one batch size's measured cost.

    Attributes:
        table: :func:`fingerprint` of the measured cost that it corrects.
        logs: logarithms of the factors of the table's node budgets ``[sizes]``.
        covariance: uncertainty of the logarithms ``[sizes, sizes]``.
        draft_log, draft_variance: logarithm of drafting's factor, and its uncertainty.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    table: str
    logs: list[FiniteFloat]
    covariance: list[list[FiniteFloat]]
    draft_log: FiniteFloat
    draft_variance: Annotated[FiniteFloat, Field(ge=0)]

    @model_validator(mode="after")
    def _complete(self) -> CostCorrection:
        size = len(self.logs)
        if len(self.covariance) != size or any(len(row) != size for row in self.covariance):
            raise ValueError("covariance needs a row and a column for every logarithm")
        matrix = np.array(self.covariance)
        if size and (np.abs(matrix - matrix.T).max() > 1e-9 or np.linalg.eigvalsh(matrix).min() < -1e-9):
            raise ValueError("covariance must be symmetric and without negative variances")
        return self


class _CorrectionFileContent(BaseModel):
    """Content of the file: a machine's :class:`CostCorrection` by batch size."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    by_batch: dict[int, CostCorrection]


def fingerprint(table: CostTable) -> str:
    """Hash of all numbers of a table."""
    return hashlib.sha256(table.model_dump_json().encode()).hexdigest()[:16]


class CostCorrectionFile:
    """File of one machine's cost corrections."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> dict[int, CostCorrection]:
        """Read the corrections by batch size; none if the file is absent, or unreadable, which is logged."""
        try:
            if not self._path.is_file():
                return {}
            if self._path.stat().st_size > MAX_BYTES:
                raise ValueError(f"it is larger than {MAX_BYTES} bytes")
            return _CorrectionFileContent.model_validate_json(self._path.read_text(encoding="utf-8")).by_batch
        except (OSError, ValueError) as error:
            first = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
            _log.warning("%s: %s; the corrections of step costs are learned again", self._path, first)
            return {}

    def write(self, corrections: Mapping[int, CostCorrection]) -> None:
        """Replace the stored corrections of these batch sizes.

        A failure never stops decoding: another replica may be writing, or the disk may be full.
        """
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self._path.with_suffix(".lock"), timeout=0):
                known = _CorrectionFileContent(by_batch=self.read() | dict(corrections))
                write_text(self._path, known.model_dump_json())
        except Timeout:
            _log.debug("%s is being written by another process", self._path)
        except OSError as error:
            _log.warning("the corrections of step costs could not be saved: %s", error)
