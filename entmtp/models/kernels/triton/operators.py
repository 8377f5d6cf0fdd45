"""PyTorch operators around Triton kernels, so that profilers and captured graphs see one call for each kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_LIBRARY = torch.library.Library("entmtp", "FRAGMENT")


def operator(schema: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a function that launches a kernel as the operator ``entmtp::{schema}``.

    The schema marks what the kernel writes, as in ``"scale(Tensor(a!) states, float factor) -> ()"``. Its first
    argument is a tensor, on whose device the kernel runs.
    """

    def register(launch: Callable[..., None]) -> Callable[..., None]:
        def on_its_device(first: torch.Tensor, *others: Any) -> None:
            with torch.cuda.device_of(first):
                launch(first, *others)

        name = _LIBRARY.define(schema)
        _LIBRARY.impl(name, on_its_device, "CompositeExplicitAutograd")
        registered: Callable[..., None] = getattr(torch.ops.entmtp, name).default
        return registered

    return register
