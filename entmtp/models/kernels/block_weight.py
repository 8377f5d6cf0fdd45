"""Weights in the blocks of GGUF's formats, and the layers that hold them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary, WeakValueDictionary

import torch
from torch import nn

from entmtp.models.kernels import compiled
from entmtp.models.kernels.block_formats import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize, quantize


@dataclass(frozen=True, eq=False)
class BlockWeight:
    """A weight ``[out, in]`` as a GGUF file has it: a block of numbers has a scale, and may have an offset.

    Attributes:
        format: name of the blocks' format, one of :data:`~entmtp.models.kernels.compiled.BLOCK_FORMATS`.
        rows: bytes ``[out, bytes per row]``.
    """

    format: str
    rows: torch.Tensor

    @classmethod
    def rounded(cls, weight: torch.Tensor, format: GGMLQuantizationType) -> BlockWeight:
        """A float32 weight ``[out, in]`` rounded to blocks of ``format``, of which its rows must be whole ones."""
        return cls(format.name, torch.from_numpy(quantize(weight.detach().numpy(), format)))

    def __deepcopy__(self, memo: dict[int, object]) -> BlockWeight:
        return self  # it is never changed, and it may be mapped from a file

    def __getitem__(self, rows: torch.Tensor | slice) -> BlockWeight:
        """The weight of these outputs alone."""
        return BlockWeight(self.format, self.rows[rows])

    @property
    def shape(self) -> tuple[int, int]:
        """``(out, in)``."""
        block, block_bytes = GGML_QUANT_SIZES[self._type]
        return self.rows.shape[0], self.rows.shape[1] // block_bytes * block

    @property
    def nbytes(self) -> int:
        """Bytes of all blocks."""
        return self.rows.nbytes

    def numel(self) -> int:
        """Number of weights."""
        out, width = self.shape
        return out * width

    @property
    def _type(self) -> GGMLQuantizationType:
        return GGMLQuantizationType[self.format]

    def dequantized(self) -> torch.Tensor:
        """The weight in float32, ``[out, in]``."""
        return self.embed(torch.arange(self.shape[0]))

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """Rows ``[..., in]`` in float32 of ``tokens [...]``."""
        numbers = tokens.reshape(-1).contiguous()
        if compiled.unsupported_reason() is not None:
            slow = dequantize(self.rows[numbers].numpy(), self._type)
            return torch.from_numpy(slow).view(*tokens.shape, self.shape[1])
        values = torch.empty(len(numbers), self.shape[1])
        compiled.library([self.format]).entmtp_dequantize(
            compiled.FORMATS.index(self.format),
            self.rows.data_ptr(),
            self.rows.stride(0),
            numbers.data_ptr(),
            len(numbers),
            self.shape[1],
            values.data_ptr(),
            torch.get_num_threads(),
        )
        return values.view(*tokens.shape, self.shape[1])


Weight: TypeAlias = torch.Tensor | BlockWeight
"""A weight ``[out, in]`` in float32, or in GGUF's blocks."""


def dequantized(weight: Weight) -> torch.Tensor:
    """The weight as numbers."""
    return weight.dequantized() if isinstance(weight, BlockWeight) else weight


def embed(table: Weight, tokens: torch.Tensor) -> torch.Tensor:
    """Rows ``[..., in]`` of a table ``[out, in]`` at ``tokens [...]``."""
    return table.embed(tokens) if isinstance(table, BlockWeight) else nn.functional.embedding(tokens, table)


_selected: WeakKeyDictionary[BlockWeight, WeakValueDictionary[str, BlockWeight]] = WeakKeyDictionary()


def select_rows(weight: Weight, rows: torch.Tensor) -> Weight:
    """The weight of the outputs ``rows [n]`` alone.

    Of a weight in blocks all who need the same rows get one copy, which is then packed once.
    """
    if not isinstance(weight, BlockWeight):
        return weight[rows]
    copies = _selected.setdefault(weight, WeakValueDictionary())
    key = hashlib.sha256(rows.numpy().tobytes()).hexdigest()
    if (copy := copies.get(key)) is None:
        copies[key] = copy = weight[rows]
    return copy


DEQUANTIZED_ROWS = 4096
"""Rows of a weight that are dequantized at a time: those of a whole output layer take as much as a small model."""


class BlockLinear(nn.Module):
    """A linear layer with a :class:`BlockWeight`; alone it multiplies by the dequantized weight, part by part."""

    def __init__(self, blocks: BlockWeight, bias: torch.Tensor | None = None) -> None:
        super().__init__()
        self.blocks = blocks
        self.out_features, self.in_features = blocks.shape
        self.bias: nn.Parameter | None = None if bias is None else nn.Parameter(bias, requires_grad=False)

    @property
    def weight(self) -> torch.Tensor:
        """The weight in float32, ``[out, in]``, made anew at each call."""
        return self.blocks.dequantized()

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """``[..., in] -> [..., out]``."""
        parts = []
        for first in range(0, self.out_features, DEQUANTIZED_ROWS):
            rows = slice(first, first + DEQUANTIZED_ROWS)
            bias = None if self.bias is None else self.bias[rows]
            parts.append(nn.functional.linear(states, self.blocks[rows].dequantized(), bias))
        return torch.cat(parts, dim=-1)


class BlockEmbedding(nn.Module):
    """An embedding table with a :class:`BlockWeight`."""

    def __init__(self, blocks: BlockWeight) -> None:
        super().__init__()
        self.blocks = blocks

    @property
    def weight(self) -> torch.Tensor:
        """The table in float32, ``[vocab_size, hidden_size]``, made anew at each call."""
        return self.blocks.dequantized()

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """``[...] -> [..., hidden_size]``."""
        return self.blocks.embed(tokens)


def weight_of(layer: Any) -> Weight:
    """The weight of a linear layer or an embedding table, in the blocks that it has."""
    return layer.blocks if isinstance(layer, BlockLinear | BlockEmbedding) else layer.weight


def named_weights(model: nn.Module) -> list[tuple[str, Weight]]:
    """A model's parameters, with the weights in blocks where they belong; a tied weight is listed once."""
    found: dict[Weight, tuple[str, Weight]] = {}
    for name, module in model.named_modules():
        blocks = {"weight": module.blocks} if isinstance(module, BlockLinear | BlockEmbedding) else {}
        for part, weight in (blocks | dict(module.named_parameters(recurse=False))).items():
            found.setdefault(weight, (f"{name}.{part}", weight))
    return list(found.values())


def formats_of(model: nn.Module) -> list[str]:
    """Names of the formats of a model's blocks, in order; empty where all weights are plain numbers."""
    layers = [layer for layer in model.modules() if isinstance(layer, BlockLinear | BlockEmbedding)]
    return sorted({layer.blocks.format for layer in layers})


@torch.no_grad()
def dequantize_layers(model: nn.Module) -> None:
    """Replace the layers with blocks by PyTorch's own; tied layers stay tied."""
    made: dict[BlockWeight, nn.Parameter] = {}
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if not isinstance(layer, BlockLinear | BlockEmbedding):
                continue
            if layer.blocks not in made:
                made[layer.blocks] = nn.Parameter(layer.blocks.dequantized(), requires_grad=False)
            weight = made[layer.blocks]
            if isinstance(layer, BlockLinear):
                setattr(parent, name, plain_linear(weight, layer.bias))
            else:
                setattr(parent, name, plain_embedding(weight))


def plain_linear(weight: nn.Parameter, bias: nn.Parameter | None) -> nn.Linear:
    """PyTorch's linear layer with this weight ``[out, in]`` itself, not a copy."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    layer.weight, layer.bias = weight, bias  # type: ignore[assignment]  # None is a layer without a bias
    return layer


def plain_embedding(weight: nn.Parameter) -> nn.Embedding:
    """PyTorch's embedding table with this weight ``[out, in]`` itself, not a copy."""
    table = nn.Embedding(weight.shape[0], weight.shape[1], device="meta")
    table.weight = weight
    return table
