"""Kernel choices of a model's linear layers, each a name and a layer factory, and the tolerances of the self-test.

``auto`` takes the fastest choice that writes the loaded model's own text.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import get_args

import torch
from torch import nn

from entmtp.errors import EntMTPError
from entmtp.models.kernels import compiled, fused_linear
from entmtp.models.kernels.block_weight import formats_of
from entmtp.models.kernels.packed_linear import PACKABLE, MakeLayer, PackedLinear, can_pack
from entmtp.models.kernels.triton import support
from entmtp.settings import Kernels


@dataclass(frozen=True)
class KernelChoice:
    """One way to run linear layers.

    Attributes:
        make_layer: factory of the layers; None leaves the model's own.
        description: text for a user; ``{weights}`` stands for the type or the formats of the weights.
        unsupported_reason: gives the reason why weights of this type and device can't use the choice, or None.
        fuses: whether decoder layers of a known kind run as a few loops each.
        merges: whether layers that read the same states become one product in the memory of their own weights.
        is_triton: whether decoder layers, acceptance and moves of cache rows run in Triton's kernels; only a decoder of
            a known kind can use the choice.
        digits: digits of 8 bits to which the inputs of products are rounded, so that the text isn't the model's own;
            0 if they aren't. ``auto`` never takes a choice that rounds.
        tolerance: allowed difference from the unmodified model, in place of the type's own.
    """

    make_layer: MakeLayer | None
    description: str
    unsupported_reason: Callable[[torch.dtype, torch.device], str | None]
    fuses: bool = False
    merges: bool = False
    is_triton: bool = False
    digits: int = 0
    tolerance: float | None = None

    def is_interpreted(self, device: torch.device) -> bool:
        """Whether its kernels would be interpreted on this device, which takes far too long for all but tests."""
        return self.is_triton and device.type != "cuda"


def _none(dtype: torch.dtype, device: torch.device) -> str | None:
    return None


def _unfusable(dtype: torch.dtype, device: torch.device) -> str | None:
    if dtype != torch.float32 or device.type != "cpu":
        return f"needs float32 weights on a CPU; these are {dtype} on {device}"
    return compiled.unsupported_reason()


def _unfusable_in_16_bits(dtype: torch.dtype, device: torch.device) -> str | None:
    if reason := _unfusable(dtype, device):
        return reason
    return None if compiled.library().entmtp_digits() > 1 else "needs a CPU with VNNI instructions"


def _unpackable(dtype: torch.dtype, device: torch.device) -> str | None:
    if can_pack(dtype, device):
        return None
    types = " or ".join(str(each).removeprefix("torch.") for each in PACKABLE)
    return f"needs {types} weights on a CPU, AVX-512 for bfloat16, and oneDNN in PyTorch; these are {dtype} on {device}"


TOLERANCE = 1e-3
"""Allowed max |dlogit| / max |logit| in float32, when the batch width changes and against the unmodified model.

It is the rounding of another order of float32 sums.
"""
HALF_TOLERANCE = 0.08
""":data:`TOLERANCE` of a 16-bit model, in which every operation rounds, not the order of the sums alone."""
INT16_TOLERANCE, INT8_TOLERANCE = 0.01, 0.2
""":data:`TOLERANCE` against the unmodified model, of choices that round their inputs.

They find errors. How many texts stay the same is counted by `benchmarks.identity`.
"""

CHOICES: dict[Kernels, KernelChoice] = {
    "triton": KernelChoice(None, "triton {weights} (for this GPU)", support.unsupported_reason, is_triton=True),
    "fused": KernelChoice(fused_linear.FusedLinear, "fused {weights} (C++ for this CPU)", _unfusable, fuses=True),
    "fused-int16": KernelChoice(
        fused_linear.Int16Linear,
        "fused {weights} with inputs rounded to int16 (C++ for this CPU; lossy)",
        _unfusable_in_16_bits,
        fuses=True,
        digits=2,
        tolerance=INT16_TOLERANCE,
    ),
    "fused-int8": KernelChoice(
        fused_linear.Int8Linear,
        "fused {weights} with inputs rounded to int8 (C++ for this CPU; lossy)",
        _unfusable,
        fuses=True,
        digits=1,
        tolerance=INT8_TOLERANCE,
    ),
    "packed": KernelChoice(PackedLinear, "packed {weights} (oneDNN)", _unpackable),
    "merged": KernelChoice(None, "merged {weights} (PyTorch)", _none, merges=True),
    "eager": KernelChoice(None, "eager {weights} (PyTorch)", _none),
}
"""All choices; ``auto`` takes the first supported one that doesn't round. On CPUs it takes no merging one.

A GPU's products of few rows take as long as reading the weight, and longer where the weight is small. On a CPU other
choices merge too, and weights that lie in a mapped file would be copied to memory.
"""


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
        return [
            name
            for name, choice in CHOICES.items()
            if not choice.digits
            and not choice.is_interpreted(device)
            and (not choice.merges or device.type == "cuda")
            and choice.unsupported_reason(dtype, device) is None
        ]
    if reason := CHOICES[kernels].unsupported_reason(dtype, device):
        raise EntMTPError(f"kernels: '{kernels}' {reason}; use 'auto'")
    return [kernels]


def draft_layer_maker(model_layers: MakeLayer | None) -> MakeLayer | None:
    """The factory of the draft heads' layers, for a model whose layers ``model_layers`` makes.

    Drafted tokens are verified, so rounding is safe. It makes drafting cheaper, and changes few drafted tokens.
    """
    fused = fused_linear.FusedLinear, fused_linear.Int16Linear, fused_linear.Int8Linear
    return fused_linear.DraftLinear if model_layers in fused else model_layers


def describe_weights(model: nn.Module, kernels: Kernels, dtype: torch.dtype) -> str:
    """The formats of a model's weights where a choice reads them as they are, else their type."""
    formats = formats_of(model) if CHOICES[kernels].fuses else []
    return ", ".join(formats) or str(dtype).removeprefix("torch.")


def describe_kernels(kernels: Kernels, weights: str) -> str:
    """Description of a choice for a user; ``weights`` names the type or the formats of the model's weights."""
    return CHOICES[kernels].description.format(weights=weights)
