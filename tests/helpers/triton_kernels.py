"""Triton kernels in tests: on the GPU, or else in Triton's interpreter (tests/conftest.py), which is mended here.

Triton 3.6 takes ``int`` of an array with one element, which NumPy 2.4 refuses: bounds of loops are such arrays.
"""

from __future__ import annotations

from typing import Any

import torch
from triton.runtime import interpreter

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

_patch_tensor = interpreter._patch_lang_tensor


def _patch_tensor_and_index(tensor: Any, scope: Any) -> None:
    _patch_tensor(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda scalar: int(scalar.handle.data.item()))


interpreter._patch_lang_tensor = _patch_tensor_and_index


def randn(*shape: int, seed: int) -> torch.Tensor:
    """Normal numbers on the device, the same for a seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def permutation(count: int, seed: int) -> torch.Tensor:
    """A permutation on the device, the same for a seed."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed)).to(DEVICE)
