"""Kernel choices of a model's linear layers: a name, a layer factory, and the tolerances of its arithmetic.

``auto`` takes the fastest choice that writes the loaded model's own text. Quantized kernels are used only when
requested by name.
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
        make_layer: factory of the layers; None leaves the model's own.
        description: text for a user; ``{dtype}`` stands for the model's type.
        unsupported_reason: gives the reason why weights of this type and device can't use the choice, or None.
        batch_tolerance: max |dlogit| / max |logit| when the batch width changes. It is the rounding of the factors:
            another order of float32 sums, one step of bfloat16, one quantum of 8 bits.
        model_tolerance: max |dlogit| / max |logit| against the unmodified model.
        fuses: whether decoder layers of a known kind run as a few loops each.
        compiles: whether the decoder around the layers becomes one compiled graph.
    """

    make_layer: MakeLayer | None
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
"""Choices in the model's own type, fastest first; ``auto`` takes the first supported one."""
HALF_TOLERANCE = 0.08
"""Replaces both tolerances for a 16-bit model, because then the whole model rounds and not just its products."""


def parse_kernels(kernels: str) -> Kernels:
    """Return ``kernels`` as a known choice; raise EntMTPError if it is unknown."""
    known: tuple[Kernels, ...] = get_args(Kernels)
    for name in known:
        if name == kernels:
            return name
    raise EntMTPError(f"kernels: '{kernels}' is unknown; choose one of {', '.join(known)}")


def supported_kernels(kernels: Kernels, dtype: torch.dtype, device: torch.device) -> list[Kernels]:
    """The supported choices that ``kernels`` stands for on this device, best first.

    A choice may still fail the self-test of a model.

    Raises:
        EntMTPError: if a choice that is requested by name is unsupported here.
    """
    if kernels == "auto":
        return [name for name in AUTOMATIC if CHOICES[name].unsupported_reason(dtype, device) is None]
    if reason := CHOICES[kernels].unsupported_reason(dtype, device):
        raise EntMTPError(f"kernels: '{kernels}' {reason}; use 'auto'")
    return [kernels]


def draft_layer_maker(model_layers: MakeLayer | None) -> MakeLayer | None:
    """The factory of the draft heads' layers, for a model whose layers ``model_layers`` makes.

    Drafted tokens are verified, so int8 weights are safe. They take a quarter of the bytes, which makes drafting
    cheaper, and change few drafted tokens.
    """
    return fused_linear.Int8WeightLinear if model_layers is fused_linear.FusedLinear else model_layers


def describe_kernels(kernels: Kernels, dtype: torch.dtype) -> str:
    """Description of a choice for a user."""
    return CHOICES[kernels].description.format(dtype=str(dtype).removeprefix("torch."))
