"""The choices of how a model's linear layers run: a name, how a layer is made, and what its arithmetic may change.

``auto`` takes the fastest choice that writes the loaded model's own text; fewer bits only by name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import get_args

import torch

from entmtp.errors import EntMTPError
from entmtp.models.kernels import fused_linear
from entmtp.models.kernels.compiling import NO_COMPILER, OpaquePackedLinear, find_compiler
from entmtp.models.kernels.packed_linear import PACKABLE, MakeLayer, PackedLinear, can_pack
from entmtp.models.kernels.quantized_linear import Bfloat16Linear, Float16Linear, Int8Linear, int8_saturates
from entmtp.settings import Kernels


@dataclass(frozen=True)
class KernelChoice:
    """One way to run linear layers.

    Attributes:
        make: makes a layer; None leaves the model's own.
        words: what a user reads; ``{dtype}`` stands for the model's type.
        obstacle: why weights of this type on this device can't have it, or None.
        spread: how far, of the largest logit, a token may move with the number of tokens beside it: the rounding of
            what is multiplied. Float32 sums in another order, one step of bfloat16, one quantum of 8 bits.
        error: how far, of the largest logit, the model's own logits may be.
        fuses: whether decoder layers of a known kind become a few sweeps each.
        compiles: whether the decoder around the layers becomes one compiled graph.
    """

    make: MakeLayer | None
    description: str
    unsupported_reason: Callable[[torch.dtype, torch.device], str | None]
    batch_tolerance: float
    model_tolerance: float
    fuses: bool = False
    compiles: bool = False


def _none(dtype: torch.dtype, device: torch.device) -> str | None:
    return None


def _unfusable(dtype: torch.dtype, device: torch.device) -> str | None:
    if dtype != torch.float32 or device.type != "cpu":
        return f"needs float32 weights on a CPU; these are {dtype} on {device}"
    return fused_linear.unsupported_reason()


def _unpackable(dtype: torch.dtype, device: torch.device) -> str | None:
    if can_pack(dtype, device):
        return None
    types = " or ".join(str(each).removeprefix("torch.") for each in PACKABLE)
    return f"needs {types} weights on a CPU, AVX-512 for bfloat16, and oneDNN in PyTorch; these are {dtype} on {device}"


def _uncompilable(dtype: torch.dtype, device: torch.device) -> str | None:
    if device.type == "cpu":
        return _unpackable(dtype, device) or (None if find_compiler() else NO_COMPILER)
    return None


def _unless(missing: Callable[[], bool], what: str) -> Callable[[torch.dtype, torch.device], str | None]:
    def reason(dtype: torch.dtype, device: torch.device) -> str | None:
        if dtype != torch.float32 or device.type != "cpu" or not torch.backends.mkldnn.is_available():
            return f"rounds float32 weights on a CPU with oneDNN; these are {dtype} on {device}"
        return f"needs {what}, which this machine lacks" if missing() else None

    return reason


def _no_bfloat16() -> bool:
    return not can_pack(torch.bfloat16, torch.device("cpu"))


def _no_fbgemm() -> bool:
    return "fbgemm" not in torch.backends.quantized.supported_engines


CHOICES: dict[Kernels, KernelChoice] = {
    "eager": KernelChoice(None, "eager {dtype} (PyTorch)", _none, batch_tolerance=1e-3, model_tolerance=1e-3),
    "fused": KernelChoice(
        fused_linear.FusedLinear,
        "fused {dtype} (C++ for this CPU)",
        _unfusable,
        batch_tolerance=1e-3,
        model_tolerance=1e-3,
        fuses=True,
    ),
    "packed": KernelChoice(
        PackedLinear, "packed {dtype} (oneDNN)", _unpackable, batch_tolerance=1e-3, model_tolerance=1e-3
    ),
    "compiled": KernelChoice(
        OpaquePackedLinear,
        "compiled {dtype} (torch.compile)",
        _uncompilable,
        batch_tolerance=1e-3,
        model_tolerance=1e-3,
        compiles=True,
    ),
    "bfloat16": KernelChoice(
        Bfloat16Linear,
        "bfloat16 products (oneDNN)",
        _unless(_no_bfloat16, "a CPU with AVX-512 or AMX"),
        batch_tolerance=2**-7,
        model_tolerance=0.1,
    ),
    "float16": KernelChoice(
        Float16Linear,
        "float16 weights (FBGEMM)",
        _unless(_no_fbgemm, "a PyTorch with FBGEMM"),
        batch_tolerance=1e-3,
        model_tolerance=0.05,
    ),
    "int8": KernelChoice(
        Int8Linear,
        "int8 products, a scale per row (oneDNN)",
        _unless(int8_saturates, "a CPU with VNNI instructions"),
        batch_tolerance=1 / 127,
        model_tolerance=0.3,
    ),
}
AUTOMATIC: tuple[Kernels, ...] = ("fused", "packed", "eager")
"""What ``auto`` takes the first of that can be had: those in the model's own type, fastest first."""
HALF_TOLERANCE = 0.08
"""Stands for ``spread`` and ``error`` where the model itself is in 16 bits: all of it rounds then, not its products."""


def check_name(kernels: str) -> Kernels:
    """Raises EntMTPError if there is no such choice."""
    known: tuple[Kernels, ...] = get_args(Kernels)
    for name in known:
        if name == kernels:
            return name
    raise EntMTPError(f"kernels: '{kernels}' is unknown; choose one of {', '.join(known)}")


def available(kernels: Kernels, dtype: torch.dtype, device: torch.device) -> list[Kernels]:
    """The choices that ``kernels`` stands for on this device, best first; not every model may fare well with each.

    Raises:
        EntMTPError: if a choice asked for by name can't be had here.
    """
    if kernels == "auto":
        return [name for name in AUTOMATIC if CHOICES[name].unsupported_reason(dtype, device) is None]
    if reason := CHOICES[kernels].unsupported_reason(dtype, device):
        raise EntMTPError(f"kernels: '{kernels}' {reason}; use 'auto'")
    return [kernels]


def draft_layer_maker(model_layers: MakeLayer | None) -> MakeLayer | None:
    """How the layers of draft heads are made beside a model whose own ``model_layers`` makes.

    A guess is verified, whatever it was made of: a quarter of the bytes makes a draft cheaper and changes few guesses.
    """
    return fused_linear.Int8WeightLinear if model_layers is fused_linear.FusedLinear else model_layers


def describe(kernels: Kernels, dtype: torch.dtype) -> str:
    """What a user reads about a choice."""
    return CHOICES[kernels].description.format(dtype=str(dtype).removeprefix("torch."))
