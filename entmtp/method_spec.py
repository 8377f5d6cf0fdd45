"""Names of a method and its parts, and the check of them.

This module imports neither torch nor transformers, so that a service refuses unknown names at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from entmtp import methods
from entmtp.errors import EntMTPError
from entmtp.methods import AUTOREGRESSIVE, NATIVE, heads_of
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


def heads_source(method: MethodSpec) -> str | None:
    """Source of the method's heads; None for the bundled ones."""
    return method.heads or (NATIVE if methods.get(method.name).heads == NATIVE else None)


def check_heads_source(method: MethodSpec) -> None:
    """Raise EntMTPError if the method drafts, no heads are given, and none are shipped for it."""
    if method.name == AUTOREGRESSIVE or heads_source(method) is not None:
        return
    if method.model != "bundled":
        raise EntMTPError(
            f"heads: none are shipped for model '{method.model}'; give --heads, --heads {NATIVE} if it has"
            " multi-token-prediction layers, or --method autoregressive"
        )
    kind = heads_of(method.name)
    if not files("entmtp").joinpath("assets", kind).is_dir():
        raise EntMTPError(
            f"heads: no {kind} ones are shipped and method '{method.name}' needs some; give a folder of"
            " 'entmtp import-heads', or choose another method"
        )
