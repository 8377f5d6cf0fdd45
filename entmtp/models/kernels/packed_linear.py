"""Linear layers whose weights are packed once for oneDNN, on CPUs.

A decoding step multiplies a few rows by every weight of the model. PyTorch's own float32 product is slow there: on a
two-core AMD EPYC (AVX-512) 2 to 4 rows cost up to twice as much as 1 row. Packing reorders the weight into oneDNN's
blocks beforehand. Then up to 8 rows cost about as much as one, which makes small trees profitable on a CPU. The
products are float32 (or bfloat16) sums in another order, so results agree up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from entmtp.models.kernels.block_weight import BlockLinear, Weight, dequantized, weight_of
from entmtp.models.kernels.merged_projections import merge_linear_layers

PACKABLE = (torch.float32, torch.bfloat16)


class InferenceLinear(nn.Module):
    """A linear layer with its weight in a special layout, for inference only.

    Attributes:
        weight: the plain weight ``[out, in]`` where other code needs it (draft heads share the output layer's), else
            None.
    """

    def __init__(self, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.weight: Weight | None = None
        self.bias = bias


MakeLayer = Callable[[Weight, torch.Tensor | None], InferenceLinear]
"""Factory of a layer from a weight ``[out, in]`` and a bias ``[out]`` or None."""


class PackedLinear(InferenceLinear):
    """A linear layer that multiplies by its weight in oneDNN's layout, in the weight's own type."""

    def __init__(self, weight: Weight, bias: torch.Tensor | None) -> None:
        super().__init__(bias)
        # Without a batch size, so that the layout works for any number of rows.
        self._packed = torch.ops.mkldnn._reorder_linear_weight(dequantized(weight).detach().contiguous(), None)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """``[..., in] -> [..., out]``."""
        product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(states, self._packed, self.bias, "none", [], "")
        return product


def can_pack(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether this machine supports packed layers for weights of this type and device."""
    if device.type != "cpu" or dtype not in PACKABLE or not torch.backends.mkldnn.is_available():
        return False
    return dtype != torch.bfloat16 or torch.ops.mkldnn._is_mkldnn_bf16_supported()


@torch.inference_mode()
def replace_linear_layers(
    model: nn.Module,
    siblings: Sequence[Sequence[nn.Linear]],
    make: MakeLayer,
    keep_weight: nn.Module | None,
    unchanged: nn.Module | None = None,
) -> None:
    """Replace the linear layers of ``model`` by layers that ``make`` makes.

    Args:
        model: the model to change.
        siblings: groups of layers that read the same states; each group becomes one product.
        make: makes the new layers.
        keep_weight: a layer whose replacement also has the plain weight.
        unchanged: a part of the model whose layers stay as they are.
    """
    from transformers.pytorch_utils import Conv1D

    excluded = set() if unchanged is None else set(unchanged.modules())
    merge_linear_layers(model, [group for group in siblings if excluded.isdisjoint(group)], make)
    for parent in [each for each in model.modules() if each not in excluded]:
        for name, layer in list(parent.named_children()):
            # Only exact types, because a subclass may do more than multiply.
            if type(layer) is nn.Linear:
                made = make(layer.weight, layer.bias)
            elif type(layer) is BlockLinear:
                made = make(layer.blocks, layer.bias)
            elif type(layer) is Conv1D:
                made = make(layer.weight.t(), layer.bias)
            else:
                continue
            made.weight = weight_of(layer) if layer is keep_weight else None
            setattr(parent, name, made)
