"""A ``transformers`` model whose weights are the blocks of a GGUF file, where they lie."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, quants
from torch import nn
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from entmtp.errors import EntMTPError, quoted
from entmtp.models.gguf.configuration import OUTPUT, architecture, configuration
from entmtp.models.gguf.file import GgufFile, GgufTensor
from entmtp.models.kernels import compiled
from entmtp.models.kernels.block_weight import (
    BlockEmbedding,
    BlockLinear,
    BlockWeight,
    formats_of,
    plain_embedding,
    plain_linear,
)
from entmtp.models.kernels.compiled import BLOCK_FORMATS

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
def gguf_model(file: GgufFile) -> PreTrainedModel:
    """The model of a file, in evaluation mode; only its vectors are copied from the file.

    Raises:
        EntMTPError: if the architecture or a format is unsupported, or a tensor is missing or has another shape.
    """
    config: Any = configuration(file)
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config)
    _Filling(file, config).fill(model)
    rotary = model.model.rotary_emb
    fresh = type(rotary)(config)  # what the constructor computes can't be computed on the meta device
    if _ROPE_FACTORS in file.tensors:
        fresh.inv_freq = fresh.inv_freq / _values(file, file.tensors[_ROPE_FACTORS])
    model.model.rotary_emb = fresh
    model.generation_config = GenerationConfig.from_model_config(config)
    # One library for all formats of the model, before one is compiled for each.
    compiled.unsupported_reason(*formats_of(model))
    loaded: PreTrainedModel = model.eval().requires_grad_(False)
    return loaded


class _Filling:
    """The file's tensors, put into a model that has shapes alone."""

    def __init__(self, file: GgufFile, config: Any) -> None:
        self._file, self._config = file, config
        # llama.cpp rotates neighbouring values in this architecture, and stores the rows in that order.
        self._interleaved = architecture(file) == "llama"

    def fill(self, model: Any) -> None:
        modules = dict(model.named_modules())
        for name, module in modules.items():
            if not list(module.children()) and any(True for _ in module.parameters(recurse=False)):
                parent, _, child = name.rpartition(".")
                setattr(modules[parent], child, self._filled(name, module))
        if self._config.tie_word_embeddings:
            table = model.model.embed_tokens
            is_blocks = isinstance(table, BlockEmbedding)
            model.lm_head = BlockLinear(table.blocks) if is_blocks else plain_linear(table.weight, None)

    def _filled(self, name: str, module: Any) -> nn.Module:
        source = self._name(name)
        if name == "lm_head" and OUTPUT not in self._file.tensors:
            return module
        weight = self._tensor(f"{source}.weight", tuple(module.weight.shape))
        bias = getattr(module, "bias", None)
        bias = None if bias is None else self._numbers(f"{source}.bias", tuple(bias.shape))
        heads = {"attn_q": self._config.num_attention_heads, "attn_k": self._config.num_key_value_heads}
        order = None
        if self._interleaved and (count := heads.get(source.rpartition(".")[2])):
            order = _half_by_half(weight.shape[0], count)
            bias = None if bias is None else nn.Parameter(bias[order], requires_grad=False)
        if weight.format in _FLOATS:
            return _plain(module, self._numbers(weight.name, weight.shape, order), bias)
        rows = torch.from_numpy(weight.rows)
        blocks = BlockWeight(weight.format, rows if order is None else rows[order])
        return BlockEmbedding(blocks) if isinstance(module, nn.Embedding) else BlockLinear(blocks, bias)

    def _name(self, name: str) -> str:
        if name in _OUTSIDE:
            return _OUTSIDE[name]
        _, _, layer, part = name.split(".", 3)
        return f"blk.{layer}.{_LAYER[part]}"

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


def _values(file: GgufFile, tensor: GgufTensor) -> torch.Tensor:
    """A tensor in float32."""
    if tensor.format not in _FLOATS:
        raise EntMTPError(f"model '{file.path}': tensor {tensor.name} is in {tensor.format}, not in float32")
    values: np.ndarray = quants.dequantize(tensor.rows, GGMLQuantizationType[tensor.format])
    return torch.from_numpy(np.array(values, dtype=np.float32)).view(tensor.shape)


def _half_by_half(rows: int, heads: int) -> torch.Tensor:
    """Row numbers in transformers' order, in which a head's rotated pairs are half a head apart."""
    return torch.arange(rows).view(heads, rows // heads // 2, 2).transpose(1, 2).reshape(-1)


def _plain(module: Any, weight: nn.Parameter, bias: nn.Parameter | None) -> nn.Module:
    if isinstance(module, nn.Embedding):
        return plain_embedding(weight)
    if isinstance(module, nn.Linear):
        return plain_linear(weight, bias)
    module.weight = weight
    return module
