"""Build a backbone of transformers' model with the fastest attention and kernels that pass its self-test."""

from __future__ import annotations

from transformers import PreTrainedModel

from entmtp.errors import EntMTPError
from entmtp.models.kernels.block_weight import formats_of
from entmtp.models.kernels.choices import CHOICES, describe_kernels, describe_weights, supported_kernels
from entmtp.models.kernels.merged_projections import collect_siblings
from entmtp.models.selftest import check_kernels
from entmtp.models.transformers_backbone import TransformersBackbone
from entmtp.models.transformers_selftest import check_supported, choose_attention, sequential_reference
from entmtp.settings import Kernels


def build_transformers_backbone(model: PreTrainedModel, kernels: Kernels) -> TransformersBackbone:
    """Build a backbone of ``model``; :func:`entmtp.models.build.build_backbone` has the arguments and errors."""
    backbone = TransformersBackbone(model)
    check_supported(backbone)
    wanted = _multi_device_kernels(kernels) if backbone.is_multi_device else kernels
    candidates = iter(supported_kernels(wanted, backbone.dtype, backbone.device))
    chosen = next(candidates)
    if CHOICES[chosen].digits and not formats_of(model):
        raise EntMTPError(
            f"kernels: '{chosen}' needs weights in GGUF's blocks; give a GGUF file, or --weights q8, or use 'auto'"
        )
    with collect_siblings(backbone.model) as siblings:
        expected, backbone.cache_shapes = sequential_reference(backbone)
    choose_attention(backbone, expected)
    refusals = []
    while True:
        try:
            backbone.use_kernels(chosen, siblings)
            check_kernels(backbone, expected)
            break
        except EntMTPError as refusal:
            if kernels != "auto" or chosen == "eager":
                raise
            refusals.append(str(refusal))
        chosen = next(candidates)
        backbone.use_model(model)
        choose_attention(backbone, expected)
    placement = [f"spread over {len(backbone.devices)} devices"] * backbone.is_multi_device
    described = describe_kernels(chosen, describe_weights(model, chosen, backbone.dtype))
    backbone.kernels_description = "; ".join([described, *placement, *refusals])
    return backbone


def _multi_device_kernels(kernels: Kernels) -> Kernels:
    """The kernels of a model whose layers are on several devices: PyTorch's own."""
    if kernels not in ("auto", "eager"):
        raise EntMTPError(f"kernels: '{kernels}' are for a model on one device; use 'auto'")
    return "eager"
