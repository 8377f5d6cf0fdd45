"""transformers' models: of weights that were loaded without it, copies that share tensors, and references."""

from __future__ import annotations

import copy
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from entmtp.models.bare_config import transformers_config
from entmtp.models.bare_model import BareModel
from entmtp.models.kernels import compiled
from entmtp.models.kernels.block_weight import formats_of
from entmtp.models.kernels.fused_linear import FusedLinear
from entmtp.models.kernels.packed_linear import replace_linear_layers

_MADE: WeakKeyDictionary[BareModel, PreTrainedModel] = WeakKeyDictionary()


def transformers_model(bare: BareModel) -> PreTrainedModel:
    """transformers' model with the very layers of ``bare``, in evaluation mode; the same one at each call."""
    if bare not in _MADE:
        _MADE[bare] = _made(bare)
    return _MADE[bare]


def reference_model(model: PreTrainedModel | BareModel) -> PreTrainedModel:
    """The model to run by transformers' code: itself, or a copy that multiplies GGUF's blocks where they lie."""
    model = transformers_model(model) if isinstance(model, BareModel) else model
    if not formats_of(model) or compiled.unsupported_reason(*formats_of(model)) is not None:
        return model
    copied = sharing_copy(model)
    replace_linear_layers(copied, [], FusedLinear, keep_weight=None)
    return copied


def sharing_copy(model: PreTrainedModel) -> PreTrainedModel:
    """Copy the modules of a model, but share its parameters and buffers."""
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


@torch.no_grad()
def _made(bare: BareModel) -> PreTrainedModel:
    config: Any = transformers_config(bare.config)
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config)
    parts = dict(bare.named_modules())
    modules = dict(model.named_modules())
    for name, module in modules.items():
        if not any(True for _ in module.children()) and any(True for _ in module.parameters(recurse=False)):
            parent, _, child = name.rpartition(".")
            setattr(modules[parent], child, _with_weights_of(module, parts[name]))
    rotary = type(model.model.rotary_emb)(config)  # its constructor computes, which the meta device can't
    if (factors := bare.model.rotary_emb.factors) is not None:
        rotary.inv_freq = rotary.inv_freq / factors
    model.model.rotary_emb = rotary
    model.generation_config = GenerationConfig.from_model_config(config)
    made: PreTrainedModel = model.eval().requires_grad_(False)
    return made


def _with_weights_of(module: nn.Module, part: nn.Module) -> nn.Module:
    """The part itself where it is a layer, else transformers' norm with its weight."""
    if isinstance(module, nn.Linear | nn.Embedding):
        return part
    module.weight = part.weight
    return module
