"""A model's own multi-token-prediction (MTP) layers as draft heads (DeepSeek-V3, arXiv 2412.19437, section 2.2).

Such layers come with the model (DeepSeek-V3, GLM-4-MoE, Mellum, ...) and need no training. Layer k is one decoder layer
of the model's own kind after a projection. For the token at position p its input is

    ``x_k[p] = project([norm(embedding of token p), norm(h_{k-1}[p-1])])``

where ``h_{-1}`` are the model's last decoder states and ``h_k`` are the normalised outputs of layer k for ``x_k``.
Layer k attends to its own keys and values of all tokens up to p. The model's output layer on ``h_k[p]`` guesses token
p + 1. So layer 0 guesses after the root, from the state from which the root was chosen. Layer 1 guesses one level
deeper, from layer 0's state of the parent and the parent's token, and so on. The modules are transformers' own
(``MtpModel`` in ``modeling_layers.py``), run with the masks of a tree.

Most published models have a single layer (``num_nextn_predict_layers`` is 1). transformers' ``generate`` then guesses
one token; vLLM and SGLang apply the layer again to its own output, as EAGLE does, and so does this module. At depths
beyond the last layer, that layer receives its own state of the parent.

:mod:`entmtp.heads.autoregressive.heads` has the draft cache and the drafter.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from entmtp.errors import EntMTPError
from entmtp.heads.autoregressive.heads import AutoregressiveHeads
from entmtp.heads.configuration import DraftHeadsConfig
from entmtp.heads.native.layers import SHARED, NativeLayers
from entmtp.methods import NATIVE
from entmtp.models.backbone import Backbone
from entmtp.models.fingerprint import sampled_fingerprint
from entmtp.models.loading.quiet import quiet_loading

DEPTH = 4
"""Depth of the trees, as of trained heads; a model with more layers gets one level per layer."""


class NativeConfig(DraftHeadsConfig):
    """Configuration of native heads."""

    model_type: ClassVar[str] = "entmtp_native"


class NativeHeads(AutoregressiveHeads):
    """Heads that are part of the model and guess within the whole vocabulary."""

    config_class = NativeConfig
    kind = NATIVE
    layers: NativeLayers

    def __init__(self, backbone: Backbone, mtp: Any) -> None:
        """Wraps transformers' ``MtpModel`` of the backbone's model."""
        layers = len(mtp.layers)
        config = NativeConfig(
            hidden_size=backbone.hidden_size,
            vocab_size=backbone.vocab_size,
            num_heads=max(DEPTH, layers),
            draft_vocab_size=backbone.vocab_size,
            model_fingerprint=backbone.fingerprint,
        )
        super().__init__(config)
        self.draft_vocab = self.draft_vocab.to(backbone.device)
        self.mtp = mtp  # a submodule, so that its parameters are theirs
        # The hash covers the layers alone: embeddings and output layer belong to the model.
        own = [(name, value) for name, value in mtp.named_parameters() if not name.startswith(SHARED)]
        self.fingerprint = sampled_fingerprint((NATIVE, config.hidden_size, layers), own)
        self.eval().requires_grad_(False)
        self.layers = NativeLayers(backbone, mtp)

    @property
    def state_dtype(self) -> torch.dtype:
        return self.layers.dtype

    def draft_logits(self, states: torch.Tensor, head: int | None = None) -> torch.Tensor:
        return self.mtp._project_to_logits(states)


def load_native(backbone: Backbone) -> NativeHeads:
    """Loads the model's own multi-token-prediction layers from the files of the model.

    Raises:
        EntMTPError: if it has none, or its files lack their weights.
    """
    from transformers.modeling_layers import MtpModel

    kind = backbone.config.model_type
    if not getattr(backbone.config, "num_mtp_layers", None):
        raise EntMTPError(
            f"heads: model type '{kind}' has no multi-token-prediction layers of its own;"
            " train heads with 'entmtp train' and give their folder"
        )
    if backbone.is_multi_device:
        raise EntMTPError(
            f"heads: {NATIVE} ones run on one device and the model is on {len(backbone.devices)};"
            " train heads with 'entmtp train', or use GPUs that hold the model"
        )
    try:
        with quiet_loading():
            layers = MtpModel.from_pretrained(backbone.model)
    except Exception as error:  # the files are the user's, and transformers raises many types
        reason = " ".join(str(error).split()) or type(error).__name__
        raise EntMTPError(
            f"heads: the multi-token-prediction layers of model type '{kind}' can't be loaded ({reason});"
            " give a folder that holds their weights, or train heads with 'entmtp train'"
        ) from error
    return NativeHeads(backbone, layers)
