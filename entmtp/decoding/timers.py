"""Timing of the parts of a step without a host-device synchronisation between them."""

from __future__ import annotations

import time
from itertools import pairwise
from typing import Any

import torch


class Stopwatch:
    """Times consecutive parts by their ends; :meth:`split` returns their milliseconds once all have ended.

    The times of a part that comes several times are added up.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._marks: list[tuple[str, Any]] = []
        self.mark("")

    def mark(self, part: str) -> None:
        """Mark the end of a part."""
        if self._cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append((part, event))
        else:
            self._marks.append((part, time.perf_counter()))

    def split(self) -> dict[str, float]:
        """Milliseconds of each part; on CUDA this waits for the last mark."""
        if self._cuda:
            self._marks[-1][1].synchronize()
        parts: dict[str, float] = {}
        for (_, begin), (part, end) in pairwise(self._marks):
            parts[part] = parts.get(part, 0.0) + self._between(begin, end)
        return parts

    def _between(self, begin: Any, end: Any) -> float:
        return begin.elapsed_time(end) if self._cuda else (end - begin) * 1e3
