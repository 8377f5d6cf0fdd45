"""Step costs on disk: what was measured once per machine, and what steps have taught since.

Both lie in ``costs/`` of the cache folder, named after all that a step's time depends on. Files are written whole, so
that replicas can share them: the last writer wins.
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
    """Path of the measured cost of this model with these heads and ``kernels`` on this hardware."""
    parts = (hardware, model_fingerprint, heads_fingerprint, kernels, str(batch))
    return folder / "costs" / f"{_key(*parts)}.json"


def correction_path(folder: Path, hardware: str, model_fingerprint: str, heads_fingerprint: str, kernels: str) -> Path:
    """Path of what steps of all batch sizes have taught; the parts are those of :func:`cost_path`."""
    return folder / "costs" / f"{_key(hardware, model_fingerprint, heads_fingerprint, kernels)}.learnt.json"


def _key(*parts: str) -> str:
    return hashlib.sha256("|".join(parts).encode()).hexdigest()[:16]


def read_cost(path: Path, say: Callable[[str], None]) -> CostTable | None:
    """The cached cost, or None if it is absent or of an older format, which is said.

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
    """Caches a measured cost; a reader never sees half a file."""
    write_text(path, cost.model_dump_json(indent=1))


class CostCorrection(BaseModel):
    """Correction of one batch size's measured cost.

    Attributes:
        table: :func:`fingerprint` of the measured cost that it corrects.
        logs: logarithms of factors ``[sizes]``, of each node budget of the table.
        covariance: how far off they may be ``[sizes, sizes]``.
        draft_log, draft_variance: the same of drafting.
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


class _LearntFile(BaseModel):
    """All of a machine's :class:`CostCorrection`, by batch size."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    by_batch: dict[int, CostCorrection]


def fingerprint(table: CostTable) -> str:
    """Hash of all its numbers."""
    return hashlib.sha256(table.model_dump_json().encode()).hexdigest()[:16]


class CostCorrectionFile:
    """One machine's file of what steps have taught."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> dict[int, CostCorrection]:
        """What is there by batch size; nothing if the file is absent or, with a line in the log, unreadable."""
        try:
            if not self._path.is_file():
                return {}
            if self._path.stat().st_size > MAX_BYTES:
                raise ValueError(f"it is larger than {MAX_BYTES} bytes")
            return _LearntFile.model_validate_json(self._path.read_text(encoding="utf-8")).by_batch
        except (OSError, ValueError) as error:
            first = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
            _log.warning("%s: %s; what was learnt of step costs is learnt again", self._path, first)
            return {}

    def write(self, learnt: Mapping[int, CostCorrection]) -> None:
        """Replaces what is there of these batch sizes.

        Decoding goes on whatever comes of it: another replica may be writing, or the disk be full.
        """
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self._path.with_suffix(".lock"), timeout=0):
                known = _LearntFile(by_batch=self.read() | dict(learnt))
                write_text(self._path, known.model_dump_json())
        except Timeout:
            _log.debug("%s is being written by another process", self._path)
        except OSError as error:
            _log.warning("what was learnt of step costs could not be kept: %s", error)
