"""Injection of faults into tensor operations, one at a time, at any operation of a program."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import entmtp

PACKAGE = str(Path(entmtp.__file__).parent)

Location = tuple[tuple[tuple[str, int], ...], str]
"""The package's lines on the stack, innermost first, and the operator that they run."""


class FaultAt(TorchDispatchMode):
    """Raises ``error`` at operation number ``at`` of those that run under it.

    Out of memory is raised only by operations that allocate memory: neither by views nor by in-place writes.

    Attributes:
        at: number of the operation; None to raise nothing.
        count: operations so far.
        location: the package's lines on the stack, and the operator, that raised the error; None before.
        callers: names of the functions on the stack at that operation.
        locations: numbers of the operations by their location, if they are ``located``.
    """

    def __init__(self, at: int | None = None, error: Exception | None = None, located: bool = False) -> None:
        super().__init__()
        self.count = 0
        self.location: Location | None = None
        self.callers: frozenset[str] = frozenset()
        self.locations: dict[Location, list[int]] = {}
        self.at, self._error, self._located = at, error, located

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not isinstance(self._error, torch.OutOfMemoryError) or _allocates(func):
            if self.count == self.at and self._error is not None:
                self.location = (_lines(), str(func))
                self.callers = frozenset(frame.f_code.co_name for frame, _ in traceback.walk_stack(None))
                self.count += 1
                raise self._error
            if self._located:
                self.locations.setdefault((_lines(), str(func)), []).append(self.count)
            self.count += 1
        return func(*args, **(kwargs or {}))


def _lines() -> tuple[tuple[str, int], ...]:
    """Lines of the package on the stack, innermost first."""
    found = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename.startswith(PACKAGE):
            found.append((frame.f_code.co_filename, frame.f_lineno))
        frame = frame.f_back
    return tuple(found)


def _allocates(func: Any) -> bool:
    """Whether an operation allocates memory; writing by index does, since it copies the indices."""
    return func._schema.name.startswith("aten::index") or any(out.alias_info is None for out in func._schema.returns)
