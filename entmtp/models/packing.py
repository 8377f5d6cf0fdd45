"""Linear layers whose weights are packed once for oneDNN, on CPUs.

A decoding step multiplies a few rows by every weight of the model. PyTorch's own float32 product is slow there: on a
two-core AMD EPYC (AVX-512) 2 to 4 rows cost up to twice what 1 row costs. With the weight reordered beforehand into the
blocks that oneDNN wants, up to 8 rows cost about the same, which is what lets a small tree pay on a CPU. For a single
row it depends on the CPU which is faster, so that is measured (:func:`keep_plain_rows`). The products
are float32 (or bfloat16) sums as before, in another order, so results agree to rounding.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from entmtp.models.joint import join_linear_layers

PACKABLE = (torch.float32, torch.bfloat16)
_LEAST_TIMED_BYTES, _MOST_TIMED_BYTES = 2**25, 2**30
_TIMED_ROUNDS = 5
_CLEARLY = 0.95
"""Less than this share of the time is a difference, not noise."""


class FixedLinear(nn.Module):
    """A linear layer that holds its weight in a layout of its own; only for inference.

    Attributes:
        weight: the plain weight ``[out, in]`` where something else needs it (a tied embedding table), else None.
    """

    def __init__(self, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.weight: torch.Tensor | None = None
        self.bias = bias


MakeLayer = Callable[[torch.Tensor, torch.Tensor | None], FixedLinear]
"""Makes a layer from a weight ``[out, in]`` and a bias ``[out]`` or None."""


class PackedLinear(FixedLinear):
    """A linear layer that multiplies by its weight in oneDNN's layout, in the weight's own type."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__(bias)
        # No batch size: the layout serves any number of rows.
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), None)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """``[..., in] -> [..., out]``."""
        product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(states, self._packed, self.bias, "none", [], "")
        return product


def can_pack(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether this machine has packed layers for weights of this type and device."""
    return device.type == "cpu" and dtype in PACKABLE and torch.backends.mkldnn.is_available()


class ByRows(nn.Module):
    """The model's own layer for one row and a packed one for more, where that is what each is best at."""

    def __init__(self, plain: nn.Module, packed: nn.Module) -> None:
        super().__init__()
        self.plain, self.packed = plain, packed

    @property
    def weight(self) -> torch.Tensor:
        """The plain weight."""
        return cast(torch.Tensor, self.plain.weight)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """``[..., in] -> [..., out]``."""
        product: torch.Tensor = (self.plain if states.numel() == states.shape[-1] else self.packed)(states)
        return product


Replaced = dict[nn.Module, nn.Module]
"""The model's own layer by the layer that took its place."""


@torch.inference_mode()
def replace_linear_layers(
    model: nn.Module, siblings: Sequence[Sequence[nn.Linear]], make: MakeLayer, keep_weight: nn.Module | None
) -> Replaced:
    """Puts layers that ``make`` makes in the place of ``model``'s; that of ``keep_weight`` keeps its weight beside.

    Each group of ``siblings``, layers that are given the same states, becomes one product.
    """
    replaced = join_linear_layers(model, siblings, make)
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            # Exact types only: a subclass may do more than multiply.
            if type(layer) is nn.Linear:
                made = make(layer.weight, layer.bias)
            elif type(layer) is Conv1D:
                made = make(layer.weight.t(), layer.bias)
            else:
                continue
            made.weight = layer.weight if layer is keep_weight else None
            setattr(parent, name, made)
            replaced[made] = layer
    return replaced


@torch.inference_mode()
def keep_plain_rows(model: nn.Module, replaced: Replaced) -> bool:
    """Gives single rows back to the model's own layers if those are faster on this machine; says whether they are.

    Which of PyTorch's and oneDNN's products reads weights faster for one row differs between CPUs, by up to a third.
    """
    if not _plain_rows_are_faster(replaced):
        return False
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if layer in replaced:
                setattr(parent, name, ByRows(replaced[layer], layer))
    return True


def _plain_rows_are_faster(replaced: Replaced) -> bool:
    """Times one row through both; False for a model that fits in a CPU's caches, where this shows nothing."""
    timed: list[tuple[nn.Module, nn.Module, torch.Tensor]] = []
    size = 0
    for made, plain in replaced.items():
        weight = cast(torch.Tensor, plain.weight)
        if size < _MOST_TIMED_BYTES:
            size += weight.nbytes
            width = weight.shape[0] if type(plain) is Conv1D else weight.shape[1]
            # Siblings compute together only for the very same tensor.
            same = [states for *_, states in timed if states.shape[-1] == width]
            timed.append((made, plain, same[0] if same else weight.new_ones(1, 1, width)))
    if size < _LEAST_TIMED_BYTES:
        return False
    seconds = {"made": float("inf"), "plain": float("inf")}
    for _ in range(_TIMED_ROUNDS):
        for name, layers in (("made", [made for made, *_ in timed]), ("plain", [plain for _, plain, _ in timed])):
            began = time.perf_counter()
            for layer, (*_, states) in zip(layers, timed, strict=True):
                layer(states)
            seconds[name] = min(seconds[name], time.perf_counter() - began)
    return seconds["plain"] < _CLEARLY * seconds["made"]
