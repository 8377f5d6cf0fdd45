"""Names of a method and its parts, and the check of them.

This module imports neither torch nor transformers, so that a service refuses unknown names at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from entmtp import methods
from entmtp.errors import EntMTPError
from entmtp.suites import MIXED, PAPER_SUITES


@dataclass(frozen=True)
class MethodSpec:
    """Names of a method and its parts, as on the command line.

    Attributes:
        name: one of :func:`methods.offered`.
        task: selects the shipped tree bank if ``bank`` is None; 'mixed' is one bank for all tasks.
        weights: 'own', or 'q8' and 'q4' to round them at load.
        heads: None for the bundled ones; 'native' for the model's own multi-token-prediction layers.
    """

    name: str
    task: str = "sharegpt"
    model: str = "bundled"
    heads: str | None = None
    bank: Path | None = None
    device: str = "cpu"
    dtype: str = "float32"
    kernels: str = "auto"
    weights: str = "own"


def check_method(method: MethodSpec) -> None:
    """Check the names of method and task; raises EntMTPError for an unknown one."""
    methods.get(method.name)
    if method.task not in (tasks := (*PAPER_SUITES, MIXED)):
        raise EntMTPError(f"task: '{method.task}' is unknown; choose one of {', '.join(tasks)}")
