"""A model whose weights are the blocks of a GGUF file, where they lie."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from entmtp.errors import EntMTPError, quoted
from entmtp.models.bare_config import BareConfig
from entmtp.models.bare_model import BareModel
from entmtp.models.gguf.configuration import architecture, configuration
from entmtp.models.gguf.file import GgufFile, GgufTensor
from entmtp.models.kernels import compiled
from entmtp.models.kernels.block_formats import GGMLQuantizationType, dequantize
from entmtp.models.kernels.block_weight import (
    BlockEmbedding,
    BlockLinear,
    BlockWeight,
    formats_of,
    plain_embedding,
    plain_linear,
)
from entmtp.models.kernels.compiled import BLOCK_FORMATS
from entmtp.models.rotary_embedding import RotaryEmbedding

_LAYER = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
"""GGUF's names of the parts of a layer, by transformers' names."""
_OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_ROPE_FACTORS = "rope_freqs.weight"
_FLOATS = "F32", "F16", "BF16"


@torch.no_grad()
def gguf_model(file: GgufFile) -> BareModel:
    """The model of a file, in evaluation mode; only its vectors are copied from the file.

    Raises:
        EntMTPError: if the architecture or a format is unsupported, or a tensor is missing or has another shape.
    """
    config = configuration(file)
    factors = _values(file, file.tensors[_ROPE_FACTORS]) if _ROPE_FACTORS in file.tensors else None
    model = BareModel(config, _Tensors(file, config), RotaryEmbedding(config, factors))
    # One library for all formats of the model, before one is compiled for each.
    compiled.unsupported_reason(*formats_of(model))
    return model.eval().requires_grad_(False)


class _Tensors:
    """The file's tensors as layers (:class:`~entmtp.models.bare_model.WeightSource`)."""

    def __init__(self, file: GgufFile, config: BareConfig) -> None:
        self._file = file
        # llama.cpp rotates neighbouring values in this architecture, and stores the rows in that order.
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        self._interleaved = heads if architecture(file) == "llama" else {}

    def release(self) -> None:
        self._file.release()

    def linear(self, name: str, shape: tuple[int, int], biased: bool) -> nn.Linear | BlockLinear:
        weight, order = self._matrix(name, shape), None
        bias = self._numbers(f"{_source(name)}.bias", shape[:1]) if biased else None
        if count := self._interleaved.get(name.rpartition(".")[2]):
            order = _half_by_half(shape[0], count)
            bias = None if bias is None else nn.Parameter(bias[order], requires_grad=False)
        if weight.format in _FLOATS:
            return plain_linear(self._numbers(weight.name, shape, order), bias)
        rows = torch.from_numpy(weight.rows)
        return BlockLinear(BlockWeight(weight.format, rows if order is None else rows[order]), bias)

    def embedding(self, name: str, shape: tuple[int, int]) -> nn.Embedding | BlockEmbedding:
        weight = self._matrix(name, shape)
        if weight.format in _FLOATS:
            return plain_embedding(self._numbers(weight.name, shape))
        return BlockEmbedding(BlockWeight(weight.format, torch.from_numpy(weight.rows)))

    def vector(self, name: str, size: int) -> nn.Parameter:
        return self._numbers(f"{_source(name)}.weight", (size,))

    def _matrix(self, name: str, shape: tuple[int, int]) -> GgufTensor:
        return self._tensor(f"{_source(name)}.weight", shape)

    def _tensor(self, name: str, shape: tuple[int, ...]) -> GgufTensor:
        found = self._file.tensors.get(name)
        if found is None:
            raise EntMTPError(f"model '{self._file.path}': it has no tensor {name}; give a file with a whole model")
        if found.format not in _FLOATS and (found.format not in BLOCK_FORMATS or len(shape) != 2):
            raise EntMTPError(
                f"model '{self._file.path}': tensor {name} is in {found.format}; known are"
                f" {', '.join(sorted(BLOCK_FORMATS))}, {', '.join(_FLOATS)}; give a file in these, such as Q4_K_M"
            )
        if found.shape != shape:
            raise EntMTPError(
                f"model '{self._file.path}': tensor {name} has the shape {quoted(found.shape)}, but its metadata say"
                f" {quoted(shape)}; download the file again"
            )
        return found

    def _numbers(self, name: str, shape: tuple[int, ...], order: torch.Tensor | None = None) -> nn.Parameter:
        values = _values(self._file, self._tensor(name, shape))
        return nn.Parameter(values if order is None else values[order], requires_grad=False)


def _source(name: str) -> str:
    """GGUF's name of a part, without its last word."""
    if name in _OUTSIDE:
        return _OUTSIDE[name]
    _, _, layer, part = name.split(".", 3)
    return f"blk.{layer}.{_LAYER[part]}"


def _values(file: GgufFile, tensor: GgufTensor) -> torch.Tensor:
    """A tensor in float32."""
    if tensor.format not in _FLOATS:
        raise EntMTPError(f"model '{file.path}': tensor {tensor.name} is in {tensor.format}, not in float32")
    values = dequantize(tensor.rows, GGMLQuantizationType[tensor.format])
    return torch.from_numpy(np.array(values, dtype=np.float32)).view(tensor.shape)


def _half_by_half(rows: int, heads: int) -> torch.Tensor:
    """Row numbers in transformers' order, in which a head's rotated pairs are half a head apart."""
    return torch.arange(rows).view(heads, rows // heads // 2, 2).transpose(1, 2).reshape(-1)
