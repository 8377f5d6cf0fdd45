"""Building a backbone: the fastest attention and kernels with which a model passes its self-test."""

from __future__ import annotations

from transformers import PreTrainedModel

from entmtp.errors import EntMTPError
from entmtp.models.backbone import Backbone
from entmtp.models.kernels.choices import available, describe
from entmtp.models.kernels.merged_projections import collect_siblings
from entmtp.models.selftest import check_kernels, check_supported, choose_attention, sequential_reference
from entmtp.settings import Kernels


def build_backbone(model: PreTrainedModel, kernels: Kernels = "auto") -> Backbone:
    """A backbone of ``model`` on the ``kernels`` that are asked for (:mod:`entmtp.models.kernels.choices`).

    Raises:
        EntMTPError: if the model's self-test fails; the message names the model type and the reason. If kernels asked
            for by name can't be had, or are no good for lossless decoding of this model; without a name, if none are.
    """
    backbone = Backbone(model)
    check_supported(backbone)
    wanted = _multi_device_kernels(kernels) if backbone.is_multi_device else kernels
    candidates = iter(available(wanted, backbone.dtype, backbone.device))
    chosen = next(candidates)
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
    placement = [f"spread over {len(backbone.devices)} devices"] * backbone.is_multi_device
    backbone.kernels_description = "; ".join([describe(chosen, backbone.dtype), *placement, *refusals])
    return backbone


def _multi_device_kernels(kernels: Kernels) -> Kernels:
    """PyTorch's own, where the layers of a model lie on several devices."""
    if kernels not in ("auto", "eager"):
        raise EntMTPError(f"kernels: '{kernels}' are for a model on one device; use 'auto'")
    return "eager"
