"""Run one model on several GPUs, layer by layer, for models that don't fit on a single GPU.

transformers and accelerate assign the layers to devices and move the states between them. The keys and values of a
layer are on the layer's device (:mod:`entmtp.models.cache`). Trees, roots and heads are on the first device, with the
embeddings, and the states of the last layer return to it. Only one device works at a time, and no graphs are captured.
"""

from __future__ import annotations

from typing import Any

import torch

from entmtp.errors import EntMTPError
from entmtp.settings import BALANCED


def check_gpus() -> None:
    """Raise EntMTPError if no GPU is visible."""
    if not torch.cuda.device_count():
        raise EntMTPError(f"device '{BALANCED}': PyTorch sees 0 CUDA devices; use 'cpu'")


def check_all_on_gpus(name: str, model: Any) -> None:
    """Raise EntMTPError if some layers of the model don't fit on the GPUs and would be moved there in every step."""
    layer_devices = getattr(model, "hf_device_map", {})
    if left := [layer for layer, device in layer_devices.items() if str(device) in ("cpu", "disk")]:
        raise EntMTPError(
            f"model {name!r}: {torch.cuda.device_count()} GPUs have no room for {len(left)} of its parts, {left[0]!r}"
            " among them; use more of them, or a smaller dtype"
        )


def devices_of(model: torch.nn.Module) -> list[torch.device]:
    """Devices of the model's parameters, that of the first parameter first."""
    return list(dict.fromkeys(parameter.device for parameter in model.parameters()))


def remove_dispatch_hook(model: torch.nn.Module) -> None:
    """Remove accelerate's dispatch hook from a shallow copy of a model, because it runs the original model."""
    model.__dict__.pop("forward", None)
