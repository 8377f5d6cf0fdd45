"""One model over several GPUs, its layers one behind the other: for models that no single one holds.

transformers and accelerate place the layers and carry what flows between them. What is ours follows: a layer's keys and
values lie where the layer does (:mod:`entmtp.models.cache`); trees, roots and heads lie on the first device, where the
embeddings are, and the last layer's states come back to it. A step has no more than one device at work at a time, and
is not captured in graphs.
"""

from __future__ import annotations

from typing import Any

import torch

from entmtp.errors import EntMTPError

BALANCED = "balanced"
"""The device of a model that is spread over all GPUs that the process sees."""


def check_gpus() -> None:
    """Raises EntMTPError if there are none to spread a model over."""
    if not torch.cuda.device_count():
        raise EntMTPError(f"device '{BALANCED}': PyTorch sees 0 CUDA devices; use 'cpu'")


def check_all_on_gpus(name: str, model: Any) -> None:
    """Raises EntMTPError if some of the model's layers found no room and would be fetched at every step."""
    layer_devices = getattr(model, "hf_device_map", {})
    if left := [layer for layer, device in layer_devices.items() if str(device) in ("cpu", "disk")]:
        raise EntMTPError(
            f"model {name!r}: {torch.cuda.device_count()} GPUs have no room for {len(left)} of its parts, {left[0]!r}"
            " among them; use more of them, or a smaller dtype"
        )


def devices_of(model: torch.nn.Module) -> list[torch.device]:
    """The devices that its parameters lie on, the first parameter's first."""
    return list(dict.fromkeys(parameter.device for parameter in model.parameters()))


def remove_dispatch_hook(model: torch.nn.Module) -> None:
    """Takes from a shallow copy of a spread model what would run the model that it was copied from."""
    model.__dict__.pop("forward", None)
