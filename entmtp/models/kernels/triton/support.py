"""Where the Triton kernels run. This module needs no Triton."""

from __future__ import annotations

import os
from importlib.util import find_spec

import torch

LEAST_CAPABILITY = (8, 0)
"""Compute capability from which matrix units multiply bfloat16."""


def is_interpreted() -> bool:
    """Whether Triton interprets kernels on a CPU, for tests."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "y", "yes")


def unsupported_reason(dtype: torch.dtype, device: torch.device) -> str | None:
    """Reason why the kernels can't run with weights of this type on this device, or None."""
    if device.type != "cuda" and not (is_interpreted() and dtype == torch.float32):
        return f"needs an NVIDIA GPU; the weights are {dtype} on {device}"
    if find_spec("triton") is None:
        return "needs the package triton, which comes with PyTorch's builds for CUDA"
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"needs weights in float32, bfloat16 or float16; these are {dtype} on {device}"
    return None if device.type != "cuda" else _weak_gpu(device)


def _weak_gpu(device: torch.device) -> str | None:
    if torch.version.hip is not None:
        return f"needs an NVIDIA GPU; {device} is another"
    if not torch.cuda.is_available():
        return "needs an NVIDIA GPU; PyTorch sees none"
    if (capability := torch.cuda.get_device_capability(device)) < LEAST_CAPABILITY:
        found, least = (".".join(map(str, each)) for each in (capability, LEAST_CAPABILITY))
        return f"needs a GPU of compute capability {least}; {device} has {found}"
    return None
