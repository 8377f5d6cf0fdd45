"""Faults that are injected into tensor operations, one at a time, at any point that a program passes."""

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
    """Raises ``error`` at operation number ``at`` of those that run under it; counts them.

    ``where`` it was raised is the operation, ``callers`` the names of the functions that ran. Without ``at`` it notes
    the ``places`` of the code that operations come from: the lines that were being run, and the operation.

    Out of memory is raised only where memory is taken: neither by views nor by what writes in place.
    """

    def __init__(self, at: int | None = None, error: Exception | None = None) -> None:
        super().__init__()
        self.count = 0
        self.where = ""
        self.callers: frozenset[str] = frozenset()
        self.places: dict[Hashable, list[int]] = {}
        self._at, self._error = at, error

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not isinstance(self._error, torch.OutOfMemoryError) or _allocates(func):
            if self.count == self._at and self._error is not None:
                self.where = str(func)
                self.callers = frozenset(frame.name for frame in traceback.extract_stack())
                self.count += 1
                raise self._error
            if self._at is None:
                self.places.setdefault((_lines(), str(func)), []).append(self.count)
            self.count += 1
        return func(*args, **(kwargs or {}))


def _lines() -> tuple[tuple[str, int], ...]:
    """Lines of the package that are being run, innermost first."""
    found = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if f"{os.sep}entmtp{os.sep}" in frame.f_code.co_filename:
            found.append((frame.f_code.co_filename, frame.f_lineno))
        frame = frame.f_back
    return tuple(found)


def _allocates(func: Any) -> bool:
    """Whether an operation takes memory; writing by index copies its indices."""
    return func._schema.name.startswith("aten::index") or any(out.alias_info is None for out in func._schema.returns)
