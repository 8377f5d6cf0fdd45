"""Build a backbone with the fastest kernels with which the model passes its self-test.

A model's weights alone run in the fused kernels, without transformers' code. All else runs by transformers' model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, overload

import torch

from entmtp.errors import EntMTPError
from entmtp.models.backbone import Backbone
from entmtp.models.bare_model import BareModel
from entmtp.models.fused_backbone import FusedBackbone
from entmtp.models.kernels.block_weight import formats_of
from entmtp.models.kernels.choices import CHOICES, describe_kernels, describe_weights, supported_kernels
from entmtp.models.passed_selftest import PassedSelftest
from entmtp.models.selftest import check_kernels
from entmtp.settings import Kernels

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from entmtp.models.transformers_backbone import TransformersBackbone


@overload
def build_backbone(model: PreTrainedModel, kernels: Kernels = "auto") -> TransformersBackbone: ...
@overload
def build_backbone(model: BareModel | PreTrainedModel, kernels: Kernels = "auto") -> Backbone: ...
def build_backbone(model: BareModel | PreTrainedModel, kernels: Kernels = "auto") -> Backbone:
    """Build a backbone of ``model`` with the requested ``kernels`` (:mod:`entmtp.models.kernels.choices`).

    Raises:
        EntMTPError: if the model fails its self-test; the message names the model type and the reason. Also if kernels
            that are requested by name are unsupported here, or not lossless for this model. With 'auto', if no kernels
            are lossless.
    """
    if isinstance(model, BareModel) and (fused := _fused_backbone(model, kernels)) is not None:
        return fused
    from entmtp.models.transformers_build import build_transformers_backbone
    from entmtp.models.transformers_model import transformers_model

    loaded = transformers_model(model) if isinstance(model, BareModel) else model
    return build_transformers_backbone(loaded, kernels)


def _fused_backbone(model: BareModel, kernels: Kernels) -> FusedBackbone | None:
    """A backbone of the fused kernels alone; None where transformers' model is needed, or has to say what is wrong."""
    chosen = supported_kernels(kernels, torch.float32, torch.device("cpu"))[0]
    if not CHOICES[chosen].fuses or (CHOICES[chosen].digits and not formats_of(model)):
        return None
    backbone = FusedBackbone(model, chosen)
    passed = PassedSelftest.of(model, chosen, backbone.fingerprint)
    try:
        if passed.is_remembered():
            check_kernels(backbone, None)
        else:
            check_kernels(backbone, _expected(backbone))
            passed.remember()
    except EntMTPError:
        return None
    backbone.release()
    backbone.kernels_description = describe_kernels(chosen, describe_weights(model, chosen, backbone.dtype))
    return backbone


def _expected(backbone: FusedBackbone) -> torch.Tensor:
    """Logits of the self-test's nodes by transformers' code."""
    from entmtp.models.transformers_backbone import TransformersBackbone
    from entmtp.models.transformers_selftest import sequential_reference

    return sequential_reference(TransformersBackbone(backbone.model))[0]
