"""Weights of draft heads' linear layers: views of the heads' parameters, or the blocks that drafting rounds them to."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

import torch
from torch import nn

from entmtp.models.kernels.block_weight import BlockWeight, Weight

LinearWeights: TypeAlias = tuple[Weight, torch.Tensor | None]
"""Weight ``[out, in]`` and bias ``[out]`` of a linear layer."""


def first_rows(weights: LinearWeights, rows: int | None) -> LinearWeights:
    """The weights of the first ``rows`` outputs alone; those of all outputs themselves, as they may be packed."""
    weight, bias = weights
    return weights if rows is None else (weight[:rows], None if bias is None else bias[:rows])


def free_parameters(module: nn.Module, weights: Iterable[Weight]) -> None:
    """Free the parameters of ``module`` that ``weights`` are views of; their shapes and types stay."""
    unused = {each.untyped_storage().data_ptr() for each in weights if not isinstance(each, BlockWeight)}
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            if parameter.untyped_storage().data_ptr() in unused:
                empty = torch.empty_like(parameter, device="meta")
                part.register_parameter(name, nn.Parameter(empty, requires_grad=False))
