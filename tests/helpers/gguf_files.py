"""GGUF files as tests need them: random blocks of any format, and small whole models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter

from entmtp.models.kernels.block_weight import BlockWeight

_HALVES = {
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q8_0": (0,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
}
"""Bytes of a block at which it has a float16."""

_SPREADS = {"Q4_0": 4.5, "Q4_1": 8.9, "Q5_0": 9.2, "Q5_1": 17.7, "Q8_0": 75.6, "Q4_K": 296, "Q5_K": 687, "Q6_K": 1431}
"""Standard deviation of the weights of random blocks whose scales have one of 1."""

_SPREAD_OF_A_MODEL = 0.05
"""Standard deviation of weights that keep states of a size at which float32 is precise."""


def random_blocks(name: str, out: int, width: int, seed: int, size: float = 0.05) -> BlockWeight:
    """A weight ``[out, width]`` of random bits, with scales of about ``size``."""
    generator = np.random.default_rng(seed)
    block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[name]]
    raw = generator.integers(0, 256, (out, width // block, block_bytes), dtype=np.uint8)
    for first in _HALVES[name]:
        halves = (generator.standard_normal((out, width // block)) * size).astype(np.float16)
        raw[..., first : first + 2] = halves[..., None].view(np.uint8)
    return BlockWeight(name, torch.from_numpy(raw.reshape(out, -1)))


VOCABULARY = [f"<{number}>" for number in range(3)] + [chr(ord("!") + number) for number in range(92)] + ["ab"]


def write_model(path: Path, architecture: str, format: str, seed: int = 0, **changes: Any) -> Path:
    """Write a small model of random weights whose matrices are all in one format; return its path.

    ``changes`` replace metadata by key; None leaves a key out.
    """
    hidden, inner, heads, kv_heads, layers = 256, 512, 4, 2, 2
    a = architecture
    head_dim = 128 if a == "qwen3" else hidden // heads  # what transformers takes for granted there
    metadata: dict[str, Any] = {
        f"{a}.block_count": layers,
        f"{a}.context_length": 128,
        f"{a}.embedding_length": hidden,
        f"{a}.feed_forward_length": inner,
        f"{a}.attention.head_count": heads,
        f"{a}.attention.head_count_kv": kv_heads,
        f"{a}.attention.layer_norm_rms_epsilon": 1e-5,
        f"{a}.attention.key_length": head_dim,
        f"{a}.rope.freq_base": 10_000.0,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": VOCABULARY,
        "tokenizer.ggml.token_type": [3] * 3 + [1] * 93,
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    } | changes
    writer = GGUFWriter(path, a)
    for key, value in metadata.items():
        _add(writer, key, value)
    shapes = {"token_embd": (len(VOCABULARY), hidden), "output": (len(VOCABULARY), hidden)}
    for layer in range(layers):
        shapes |= {
            f"blk.{layer}.attn_q": (heads * head_dim, hidden),
            f"blk.{layer}.attn_k": (kv_heads * head_dim, hidden),
            f"blk.{layer}.attn_v": (kv_heads * head_dim, hidden),
            f"blk.{layer}.attn_output": (hidden, heads * head_dim),
            f"blk.{layer}.ffn_gate": (inner, hidden),
            f"blk.{layer}.ffn_up": (inner, hidden),
            f"blk.{layer}.ffn_down": (hidden, inner),
        }
    for number, (name, shape) in enumerate(shapes.items()):
        _add_matrix(writer, f"{name}.weight", shape, format, seed * 1000 + number)
    generator = np.random.default_rng(seed)
    vectors = {"output_norm.weight": hidden}
    for layer in range(layers):
        vectors |= {f"blk.{layer}.attn_norm.weight": hidden, f"blk.{layer}.ffn_norm.weight": hidden}
        if a == "qwen2":
            vectors |= {
                f"blk.{layer}.attn_q.bias": heads * head_dim,
                f"blk.{layer}.attn_k.bias": kv_heads * head_dim,
                f"blk.{layer}.attn_v.bias": kv_heads * head_dim,
            }
        if a == "qwen3":
            vectors |= {f"blk.{layer}.attn_q_norm.weight": head_dim, f"blk.{layer}.attn_k_norm.weight": head_dim}
    for name, size in vectors.items():
        writer.add_tensor(name, (1 + 0.1 * generator.standard_normal(size)).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: GGUFWriter, key: str, value: Any) -> None:
    if value is None:
        return
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def _add_matrix(writer: GGUFWriter, name: str, shape: tuple[int, int], format: str, seed: int) -> None:
    if format == "F32":
        writer.add_tensor(
            name, (np.random.default_rng(seed).standard_normal(shape) * _SPREAD_OF_A_MODEL).astype(np.float32)
        )
        return
    blocks = random_blocks(format, *shape, seed, size=_SPREAD_OF_A_MODEL / _SPREADS[format])
    writer.add_tensor(name, blocks.rows.numpy(), raw_dtype=GGMLQuantizationType[format])
