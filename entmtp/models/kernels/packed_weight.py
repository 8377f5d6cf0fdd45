"""Weights packed in the order in which the compiled kernels read them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch

from entmtp.models.kernels.block_weight import BlockWeight, Weight
from entmtp.models.kernels.compiled import FORMATS, Matrix, library


@dataclass(frozen=True)
class PackedWeight:
    """A packed weight ``[out, in]``.

    Attributes:
        data: strips of weights, in bytes.
    """

    format: str
    data: torch.Tensor
    out: int

    @property
    def matrix(self) -> Matrix:
        """The weight's address and shape; the caller keeps the weight alive."""
        return Matrix(self.data.data_ptr(), self.out, FORMATS.index(self.format))


def format_of(weight: Weight) -> str:
    """Name of a weight's format."""
    return weight.format if isinstance(weight, BlockWeight) else "FLOAT32"


def merged(weights: Sequence[Weight]) -> list[Weight]:
    """The weights as one of all their outputs where they have one format, else as they are."""
    if len({format_of(weight) for weight in weights}) > 1:
        return list(weights)
    tensors = [weight.rows if isinstance(weight, BlockWeight) else weight for weight in weights]
    joined = tensors[0] if len(tensors) == 1 else torch.cat(tensors)
    return [BlockWeight(weights[0].format, joined) if isinstance(weights[0], BlockWeight) else joined]


_packed_blocks: WeakKeyDictionary[BlockWeight, PackedWeight] = WeakKeyDictionary()


def pack(weight: Weight) -> PackedWeight:
    """Pack a weight without any change of its values; a weight in blocks is packed once for all who need it."""
    if not isinstance(weight, BlockWeight):
        return _pack(weight)
    if weight not in _packed_blocks:
        _packed_blocks[weight] = _pack(weight)
    return _packed_blocks[weight]


def _pack(weight: Weight) -> PackedWeight:
    name = format_of(weight)
    rows = (weight.rows if isinstance(weight, BlockWeight) else weight.detach()).contiguous()
    out, width = weight.shape
    kernels = library([name])
    data = torch.empty(kernels.entmtp_packed_bytes(FORMATS.index(name), out, width), dtype=torch.uint8)
    kernels.entmtp_pack(
        FORMATS.index(name),
        rows.data_ptr(),
        rows.stride(0) * rows.element_size(),
        data.data_ptr(),
        out,
        width,
        torch.get_num_threads(),
    )
    return PackedWeight(name, data, out)
