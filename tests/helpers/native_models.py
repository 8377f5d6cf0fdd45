"""Tiny random models with multi-token-prediction layers, and transformers' own chain drafting with them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel
from transformers.cache_utils import MtpCache
from transformers.modeling_layers import MtpModel

from entmtp.heads.native.heads import NativeHeads
from entmtp.models.backbone import Backbone
from entmtp.models.build import build_backbone
from tests.helpers.small_cases import SMALL_VOCAB
from tests.helpers.tiny_models import PATTERN, tiny_model

_MOE = {"moe_intermediate_size": 16, "num_experts_per_tok": 2}
_ROUTED = _MOE | {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "n_shared_experts": 1}
_OWN: dict[str, dict[str, Any]] = {
    "mellum": _MOE | {"num_experts": 4, "num_mtp_layers": 1, "sliding_window": 6, "layer_types": PATTERN},
    "glm4_moe": _ROUTED | {"first_k_dense_replace": 1, "num_mtp_layers": 1},
    "deepseek_v3": _ROUTED
    | {
        "first_k_dense_replace": 1,
        "num_mtp_layers": 2,
        "num_key_value_heads": 4,
        "head_dim": 4,
        "q_lora_rank": 8,
        "kv_lora_rank": 8,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
    },
}
_PUBLISHED = {
    "enorm": "pre_fc_norm_embedding",
    "hnorm": "pre_fc_norm_hidden",
    "eh_proj": "fc",
    "post_norm": "norm",
    "mtp_block": "layers.0",
}
_OUT = ("o_proj.weight", "down_proj", "down_proj.weight")
MTP_TYPES = tuple(_OWN)
"""Model types: one layer with a sliding window, one with full attention, two with latent attention."""


def mtp_model(model_type: str, **changes: Any) -> PreTrainedModel:
    """A tiny model over a small vocabulary, so that some guesses are right."""
    return tiny_model(model_type, **(_OWN[model_type] | {"vocab_size": SMALL_VOCAB} | changes))


def native_heads(backbone: Backbone, seed: int = 0) -> NativeHeads:
    """Native heads with random weights; no weight is zero by its initial value."""
    layers = MtpModel(backbone.model, backbone.config.num_mtp_layers)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in layers.named_parameters():
        if name.startswith("layers."):
            drawn = torch.randn(parameter.shape, generator=generator)
            parameter.data = 1 + 0.2 * drawn if parameter.ndim == 1 else drawn / parameter.shape[-1] ** 0.5
    return NativeHeads(backbone, layers)


def save_native(model: PreTrainedModel, heads: NativeHeads, folder: Path) -> None:
    """Saves a Mellum with a dense layer in the files of published models."""
    model.save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    for name, value in heads.mtp.layers[0].state_dict().items():
        part, _, rest = name.partition(".")
        weights[f"mtp.{_PUBLISHED[part]}.{rest}"] = value.clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


class Chain:
    """transformers' own layers with the same weights, run on one chain of tokens at a time."""

    def __init__(self, model: PreTrainedModel, heads: NativeHeads) -> None:
        self._model = model
        self._layers: Any = MtpModel(model, heads.layers.count).eval()
        own = {name: value for name, value in heads.mtp.state_dict().items() if name.startswith("layers.")}
        self._layers.load_state_dict(own, strict=False)

    @torch.inference_mode()
    def log_probs(self, text: Sequence[int], path: Sequence[int]) -> torch.Tensor:
        """Log-probabilities ``[vocab]`` after ``path``, drafted after ``text``, which ends in the root."""
        count, root = len(self._layers.layers), len(text) - 1
        decoder = self._model.get_decoder()
        states = decoder(input_ids=torch.tensor([list(text[:-1])]), use_cache=False).last_hidden_state
        cache = MtpCache(config=self._layers.config)
        tokens = [*text, *path]
        for layer in range(min(len(path) + 1, count)):
            positions = torch.arange(layer + 1, root + layer + 1)[None]
            ids = torch.tensor([tokens[layer + 1 : root + layer + 1]])
            states = self._layers.forward_layer(layer, states, positions, cache, input_ids=ids)
        for at in range(root + count, len(tokens)):
            ids, positions = torch.tensor([[tokens[at]]]), torch.tensor([[at]])
            states = self._layers.forward_layer(count - 1, states[:, -1:], positions, cache, input_ids=ids)
        return self._layers._project_to_logits(states[0, -1]).float().log_softmax(-1)


def sure_heads(model: PreTrainedModel) -> tuple[Backbone, NativeHeads]:
    """Heads that always guess right: changes a Mellum in place so that each token depends on the last one alone."""
    for name, parameter in model.named_parameters():
        if name.endswith(_OUT):
            parameter.data.zero_()
    backbone = build_backbone(model)
    heads = native_heads(backbone)
    layer, size = heads.mtp.layers[0], backbone.hidden_size
    for name, parameter in layer.named_parameters():
        if name.endswith(_OUT):
            parameter.data.zero_()
    layer.eh_proj.weight.data = torch.cat([torch.eye(size), torch.zeros(size, size)], dim=1)
    layer.enorm.weight.data.fill_(1)
    layer.post_norm.weight.data = model.get_decoder().norm.weight.data.clone()
    return backbone, heads
