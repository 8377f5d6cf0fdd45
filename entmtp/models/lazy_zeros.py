"""Tensors of zeros that take memory as they are written, so that a long context costs what its texts need."""

from __future__ import annotations

import math
import mmap
import sys
from collections.abc import Sequence

import torch

_NO_RESERVE = 0x4000
"""MAP_NORESERVE of Linux, for which Python has no name: the whole need not fit the memory that is free now."""


def lazy_zeros(shape: Sequence[int], dtype: torch.dtype, device: torch.device | None) -> torch.Tensor:
    """Zeros of a ``shape``. On a CPU with Linux, a page takes memory from the first write to it on.

    ``torch.zeros`` writes all of them, as it does on other devices.
    """
    size = math.prod(shape) * dtype.itemsize
    if not size or device is None or device.type != "cpu" or sys.platform != "linux":
        return torch.zeros(shape, dtype=dtype, device=device)
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE)
    # A huge page would take the memory of several texts at the first token of one.
    pages.madvise(mmap.MADV_NOHUGEPAGE)
    return torch.frombuffer(pages, dtype=dtype).view(tuple(shape))
