"""ggml's types of weights, and how values are rounded to blocks of 8 bits.

Names are those of the package ``gguf``, which is imported only for what is rare: its import takes a third of a second.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class GGMLQuantizationType(IntEnum):
    """ggml's types by their numbers in a file."""

    F32 = 0
    F16 = 1
    Q4_0 = 2
    Q4_1 = 3
    Q5_0 = 6
    Q5_1 = 7
    Q8_0 = 8
    Q8_1 = 9
    Q2_K = 10
    Q3_K = 11
    Q4_K = 12
    Q5_K = 13
    Q6_K = 14
    Q8_K = 15
    IQ2_XXS = 16
    IQ2_XS = 17
    IQ3_XXS = 18
    IQ1_S = 19
    IQ4_NL = 20
    IQ3_S = 21
    IQ2_S = 22
    IQ4_XS = 23
    I8 = 24
    I16 = 25
    I32 = 26
    I64 = 27
    F64 = 28
    IQ1_M = 29
    BF16 = 30
    TQ1_0 = 34
    TQ2_0 = 35
    MXFP4 = 39
    NVFP4 = 40
    Q1_0 = 41


GGML_QUANT_SIZES = {
    GGMLQuantizationType.F32: (1, 4),
    GGMLQuantizationType.F16: (1, 2),
    GGMLQuantizationType.Q4_0: (32, 18),
    GGMLQuantizationType.Q4_1: (32, 20),
    GGMLQuantizationType.Q5_0: (32, 22),
    GGMLQuantizationType.Q5_1: (32, 24),
    GGMLQuantizationType.Q8_0: (32, 34),
    GGMLQuantizationType.Q8_1: (32, 40),
    GGMLQuantizationType.Q2_K: (256, 84),
    GGMLQuantizationType.Q3_K: (256, 110),
    GGMLQuantizationType.Q4_K: (256, 144),
    GGMLQuantizationType.Q5_K: (256, 176),
    GGMLQuantizationType.Q6_K: (256, 210),
    GGMLQuantizationType.Q8_K: (256, 292),
    GGMLQuantizationType.IQ2_XXS: (256, 66),
    GGMLQuantizationType.IQ2_XS: (256, 74),
    GGMLQuantizationType.IQ3_XXS: (256, 98),
    GGMLQuantizationType.IQ1_S: (256, 50),
    GGMLQuantizationType.IQ4_NL: (32, 18),
    GGMLQuantizationType.IQ3_S: (256, 110),
    GGMLQuantizationType.IQ2_S: (256, 82),
    GGMLQuantizationType.IQ4_XS: (256, 136),
    GGMLQuantizationType.I8: (1, 1),
    GGMLQuantizationType.I16: (1, 2),
    GGMLQuantizationType.I32: (1, 4),
    GGMLQuantizationType.I64: (1, 8),
    GGMLQuantizationType.F64: (1, 8),
    GGMLQuantizationType.IQ1_M: (256, 56),
    GGMLQuantizationType.BF16: (1, 2),
    GGMLQuantizationType.TQ1_0: (256, 54),
    GGMLQuantizationType.TQ2_0: (256, 66),
    GGMLQuantizationType.MXFP4: (32, 17),
    GGMLQuantizationType.NVFP4: (64, 36),
    GGMLQuantizationType.Q1_0: (128, 18),
}
"""Values of a block of each type, and its bytes."""
_BLOCKS_AT_ONCE = 4096
"""Blocks that are rounded together, so that what is computed of them stays in the CPU's cache."""


def quantize(values: np.ndarray, kind: GGMLQuantizationType) -> np.ndarray:
    """Round float32 ``values [rows, width]`` to blocks of ``kind``; returns bytes ``[rows, bytes per row]``.

    ``width`` is a whole number of blocks.
    """
    if kind == GGMLQuantizationType.Q8_0:
        return _quantize_q8_0(values)
    import gguf

    blocks: np.ndarray = gguf.quants.quantize(values, gguf.GGMLQuantizationType(kind))
    return blocks


def dequantize(rows: np.ndarray, kind: GGMLQuantizationType) -> np.ndarray:
    """Values ``[rows, width]`` in float32 of ``rows [rows, bytes per row]`` of a type."""
    if kind == GGMLQuantizationType.F32:
        return rows.view(np.float32)
    import gguf

    values: np.ndarray = gguf.quants.dequantize(rows, gguf.GGMLQuantizationType(kind))
    return values


def _quantize_q8_0(values: np.ndarray) -> np.ndarray:
    """As ggml does it: a block's scale is its largest value in 127 steps, and halves are rounded away from 0."""
    block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType.Q8_0]
    blocks = np.ascontiguousarray(values, np.float32).reshape(-1, block)
    packed = np.empty((len(blocks), block_bytes), np.uint8)
    for first in range(0, len(blocks), _BLOCKS_AT_ONCE):
        part, rows = blocks[first : first + _BLOCKS_AT_ONCE], packed[first : first + _BLOCKS_AT_ONCE]
        scale = np.abs(part).max(axis=1, keepdims=True) / np.float32(127)
        with np.errstate(divide="ignore"):
            steps = part * np.where(scale == 0, np.float32(0), 1 / scale)
        magnitude = np.abs(steps)
        floor = np.floor(magnitude)
        rounded = np.sign(steps) * (floor + np.floor(2 * (magnitude - floor)))
        rows[:, :2] = scale.astype(np.float16).view(np.uint8)
        rows[:, 2:] = rounded.astype(np.int8).view(np.uint8)
    return packed.reshape(len(values), -1)
