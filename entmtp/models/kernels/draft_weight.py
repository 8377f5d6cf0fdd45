"""Weights of draft heads in the blocks that their layers read, as :class:`~.fused_linear.DraftLinear` rounds them."""

from __future__ import annotations

from entmtp.models.kernels.block_formats import GGML_QUANT_SIZES, GGMLQuantizationType
from entmtp.models.kernels.block_weight import BlockWeight, Weight

DRAFT_FORMAT = GGMLQuantizationType.Q8_0


def draft_weight(weight: Weight) -> Weight:
    """A float32 weight ``[out, in]`` rounded to int8 in blocks of 32; as it is where its rows aren't whole blocks."""
    block, _ = GGML_QUANT_SIZES[DRAFT_FORMAT]
    if isinstance(weight, BlockWeight) or weight.shape[1] % block:
        return weight
    return BlockWeight.rounded(weight, DRAFT_FORMAT)
