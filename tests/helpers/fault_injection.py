"""Injection of faults into tensor operations, one at a time, at any operation of a program."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Hashable
from types import FrameType
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class FaultAt(TorchDispatchMode):
    """Raises ``error`` at operation number ``at`` of those that run under it.

    Out of memory is raised only by operations that allocate memory: neither by views nor by in-place writes.

    Attributes:
        count: operations so far.
        where: the operation that raised the error.
        callers: names of the functions on the stack at that operation.
        locations: numbers of the operations by the package's lines on the stack and the operator; only without ``at``.
    """

    def __init__(self, at: int | None = None, error: Exception | None = None) -> None:
        super().__init__()
        self.count = 0
        self.where = ""
        self.callers: frozenset[str] = frozenset()
        self.locations: dict[Hashable, list[int]] = {}
        self._at, self._error = at, error

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not isinstance(self._error, torch.OutOfMemoryError) or _allocates(func):
            if self.count == self._at and self._error is not None:
                self.where = str(func)
                self.callers = frozenset(frame.name for frame in traceback.extract_stack())
                self.count += 1
                raise self._error
            if self._at is None:
                self.locations.setdefault((_lines(), str(func)), []).append(self.count)
            self.count += 1
        return func(*args, **(kwargs or {}))


def _lines() -> tuple[tuple[str, int], ...]:
    """Lines of the package on the stack, innermost first."""
    found = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if f"{os.sep}entmtp{os.sep}" in frame.f_code.co_filename:
            found.append((frame.f_code.co_filename, frame.f_lineno))
        frame = frame.f_back
    return tuple(found)


def _allocates(func: Any) -> bool:
    """Whether an operation allocates memory; writing by index does, since it copies the indices."""
    return func._schema.name.startswith("aten::index") or any(out.alias_info is None for out in func._schema.returns)
