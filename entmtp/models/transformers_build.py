"""Build a backbone of transformers' model with the fastest attention and kernels that pass its self-test."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import nn
from transformers import PreTrainedModel

from entmtp.errors import EntMTPError
from entmtp.models.kernels.block_weight import dequantize_layers, formats_of
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
    supported = supported_kernels(wanted, backbone.dtype, backbone.device)
    if CHOICES[supported[0]].digits and not formats_of(model):
        raise EntMTPError(
            f"kernels: '{supported[0]}' needs weights in GGUF's blocks; give a GGUF file, or --weights q8, or use"
            " 'auto'"
        )
    if CHOICES[supported[0]].merges:
        dequantize_layers(backbone.model)  # as its kernels do: blocks can't be slices of a merged weight
    names = {layer: name for name, layer in backbone.model.named_modules()}
    with collect_siblings(backbone.model) as groups:
        expected, backbone.cache_shapes = sequential_reference(backbone)
    siblings = [[names[layer] for layer in group] for group in groups]
    usable = [name for name in supported if siblings or not CHOICES[name].merges]
    if not usable:
        raise EntMTPError(
            f"kernels: '{kernels}' finds no layers that read the same states in type '{backbone.config.model_type}';"
            " use 'eager'"
        )
    choose_attention(backbone, expected)
    refusals, candidates = [], iter(usable)
    chosen = next(candidates)
    while True:
        try:
            backbone.use_kernels(chosen, _layers(backbone.model, siblings))
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


def _layers(model: PreTrainedModel, groups: Sequence[Sequence[str]]) -> list[list[nn.Linear]]:
    """The layers of these names in the model, which is another copy after each refusal."""
    return [[cast("nn.Linear", model.get_submodule(name)) for name in group] for group in groups]


def _multi_device_kernels(kernels: Kernels) -> Kernels:
    """The kernels of a model whose layers are on several devices: PyTorch's own."""
    if kernels not in ("auto", "eager"):
        raise EntMTPError(f"kernels: '{kernels}' are for a model on one device; use 'auto'")
    return "eager"
