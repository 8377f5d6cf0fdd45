"""Build a backbone with the fastest attention and kernels with which the model passes its self-test."""

from __future__ import annotations

from transformers import PreTrainedModel

from entmtp.errors import EntMTPError
from entmtp.models.backbone import Backbone, sharing_copy
from entmtp.models.kernels import compiled
from entmtp.models.kernels.block_weight import formats_of
from entmtp.models.kernels.choices import CHOICES, describe_kernels, supported_kernels
from entmtp.models.kernels.fused_linear import FusedLinear
from entmtp.models.kernels.merged_projections import collect_siblings
from entmtp.models.kernels.packed_linear import replace_linear_layers
from entmtp.models.selftest import check_kernels, check_supported, choose_attention, sequential_reference
from entmtp.settings import Kernels


def build_backbone(model: PreTrainedModel, kernels: Kernels = "auto") -> Backbone:
    """Build a backbone of ``model`` with the requested ``kernels`` (:mod:`entmtp.models.kernels.choices`).

    Raises:
        EntMTPError: if the model fails its self-test; the message names the model type and the reason. Also if kernels
            that are requested by name are unsupported here, or not lossless for this model. With 'auto', if no kernels
            are lossless.
    """
    backbone = Backbone(model)
    check_supported(backbone)
    wanted = _multi_device_kernels(kernels) if backbone.is_multi_device else kernels
    candidates = iter(supported_kernels(wanted, backbone.dtype, backbone.device))
    chosen = next(candidates)
    if CHOICES[chosen].rounds and not formats_of(model):
        raise EntMTPError(
            f"kernels: '{chosen}' needs weights in GGUF's blocks; give a GGUF file, or --weights q8, or use 'auto'"
        )
    with collect_siblings(backbone.model) as siblings:
        expected, backbone.cache_shapes = sequential_reference(backbone)
    choose_attention(backbone, expected)
    refusals = []
    while True:
        backbone.use_kernels(chosen, siblings)
        try:
            check_kernels(backbone, expected)
            break
        except EntMTPError as refusal:
            if kernels != "auto" or chosen == "eager":
                raise
            refusals.append(str(refusal))
        chosen = next(candidates)
        backbone.use_model(model)
        choose_attention(backbone, expected)
    weights = ", ".join(formats_of(model)) if CHOICES[chosen].fuses else ""
    weights = weights or str(backbone.dtype).removeprefix("torch.")
    placement = [f"spread over {len(backbone.devices)} devices"] * backbone.is_multi_device
    backbone.kernels_description = "; ".join([describe_kernels(chosen, weights), *placement, *refusals])
    return backbone


def reference_model(model: PreTrainedModel) -> PreTrainedModel:
    """The model to run by its own code: itself, or a copy that multiplies GGUF's blocks where they lie."""
    if not formats_of(model) or compiled.unsupported_reason(*formats_of(model)) is not None:
        return model
    copied = sharing_copy(model)
    replace_linear_layers(copied, [], FusedLinear, keep_weight=None)
    return copied


def _multi_device_kernels(kernels: Kernels) -> Kernels:
    """The kernels of a model whose layers are on several devices: PyTorch's own."""
    if kernels not in ("auto", "eager"):
        raise EntMTPError(f"kernels: '{kernels}' are for a model on one device; use 'auto'")
    return "eager"
