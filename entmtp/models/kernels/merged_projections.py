"""Merge sibling linear layers that read the same states (query, key and value; gate and up) into one product.

One product with a large weight costs less than several with small weights, and much less where the weights are small.
Siblings are found by observing a pass instead of by name, so that this works for any architecture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn

Multiply = Callable[[torch.Tensor], torch.Tensor]
"""``[..., in] -> [..., out]``."""
Product = Callable[[torch.Tensor, torch.Tensor | None], Multiply]
"""Factory of a layer from a weight ``[out, in]`` and a bias ``[out]`` or None."""


class MergedProduct:
    """The product of several sibling layers: the first one that is called computes the outputs of all."""

    def __init__(self, layers: Sequence[nn.Linear], product: Product, in_place: bool = False) -> None:
        """Make the ``product``; with ``in_place``, the layers' weights and biases become slices of its own.

        Then no memory is added, and whoever has the layers may still run them.
        """
        self._sizes = [layer.out_features for layer in layers]
        weight = torch.cat([layer.weight for layer in layers])
        bias = _merged_bias(layers)
        self._linear = product(weight, bias)
        if in_place:
            for layer, own in zip(layers, weight.split(self._sizes), strict=True):
                layer.weight.data = own
            for layer, own in zip(layers, () if bias is None else bias.split(self._sizes)):
                if layer.bias is not None:
                    layer.bias.data = own
        self._states: torch.Tensor | None = None
        self._outputs: dict[int, torch.Tensor] = {}

    def output(self, number: int, states: torch.Tensor) -> torch.Tensor:
        """Output of layer ``number``. Each output is returned once, so that none outlives its pass."""
        if states is not self._states or number not in self._outputs:
            self._states = states
            self._outputs = dict(enumerate(self._linear(states).split(self._sizes, dim=-1)))
        product = self._outputs.pop(number)
        if not self._outputs:
            self._states = None
        return product


class MergedLinear(nn.Module):
    """Replacement of one of the layers of a :class:`MergedProduct`, for inference only.

    Attributes:
        weight, bias: of the ``layer`` that it replaces, where they are slices of the product's, else None.
    """

    def __init__(self, merged: MergedProduct, number: int, layer: nn.Linear | None = None) -> None:
        super().__init__()
        self._merged, self._number = merged, number
        self.weight: torch.Tensor | None = None if layer is None else layer.weight
        self.bias: torch.Tensor | None = None if layer is None else layer.bias

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """``[..., in] -> [..., out]``."""
        return self._merged.output(self._number, states)


def _merged_bias(layers: Sequence[nn.Linear]) -> torch.Tensor | None:
    if all(layer.bias is None for layer in layers):
        return None
    zero = layers[0].weight.new_zeros
    return torch.cat([zero(layer.out_features) if layer.bias is None else layer.bias for layer in layers])


@contextmanager
def collect_siblings(model: nn.Module) -> Iterator[list[list[nn.Linear]]]:
    """List the groups of sibling layers of ``model`` that read the same tensor object while it runs in the block."""
    groups: list[list[nn.Linear]] = []
    seen: set[nn.Linear] = set()
    last: list[tuple[nn.Module, torch.Tensor]] = []

    def watch(parent: nn.Module, layer: nn.Linear, inputs: tuple[torch.Tensor, ...]) -> None:
        if layer in seen:
            return
        seen.add(layer)
        is_sibling = bool(last) and last[0][0] is parent and last[0][1] is inputs[0]
        last[:] = [(parent, inputs[0])]
        if is_sibling:
            groups[-1].append(layer)
        else:
            groups.append([layer])

    hooks = [
        layer.register_forward_pre_hook(partial(watch, parent))
        for parent in model.modules()
        for layer in parent.children()
        # Only the exact type, because a subclass may do more than multiply.
        if type(layer) is nn.Linear
    ]
    try:
        yield groups
    finally:
        for hook in hooks:
            hook.remove()
        groups[:] = [group for group in groups if len(group) > 1]


@torch.inference_mode()
def merge_linear_layers(model: nn.Module, groups: Sequence[Sequence[nn.Linear]], product: Product) -> None:
    """Replace each of the ``groups`` of layers of ``model`` by one merged product."""
    replacements: dict[nn.Module, MergedLinear] = {}
    for group in groups:
        merged = MergedProduct(group, product)
        replacements |= {layer: MergedLinear(merged, number) for number, layer in enumerate(group)}
    _replace(model, replacements)


@torch.no_grad()
def merge_in_place(model: nn.Module, groups: Sequence[Sequence[nn.Linear]]) -> None:
    """Replace each of the ``groups`` of layers of ``model`` by one product of PyTorch's own.

    Their weights and biases become slices of the product's. It is done group by group, so that the memory of one group
    is all that it takes meanwhile. A weight that is more than a tensor, as some quantizations' are, stays as it is.
    """
    replacements: dict[nn.Module, MergedLinear] = {}
    for group in groups:
        if all(type(layer.weight.data) is torch.Tensor for layer in group):
            merged = MergedProduct(group, _plain_product, in_place=True)
            replacements |= {layer: MergedLinear(merged, number, layer) for number, layer in enumerate(group)}
    _replace(model, replacements)


def _plain_product(weight: torch.Tensor, bias: torch.Tensor | None) -> Multiply:
    return partial(nn.functional.linear, weight=weight, bias=bias)


def _replace(model: nn.Module, replacements: Mapping[nn.Module, MergedLinear]) -> None:
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if layer in replacements:
                setattr(parent, name, replacements[layer])
