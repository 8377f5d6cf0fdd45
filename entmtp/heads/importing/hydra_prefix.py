"""The decoder layer of "prefix-mlp" Hydra heads (Hydra++, arXiv 2402.05109, section 4).

``prefix_embeding_layer.`` (spelt so) is a ``LlamaModel`` of the base model's configuration with one layer:
``layers.0.self_attn.{q,k,v,o}_proj.weight``, ``layers.0.mlp.{gate,up,down}_proj.weight``,
``layers.0.input_layernorm.weight``, ``layers.0.post_attention_layernorm.weight``, ``norm.weight``. Not imported are the
unused ``embed_tokens.weight`` and, from older versions, ``layers.0.self_attn.rotary_emb.inv_freq``. The number of
attention heads is read from the model's configuration. :mod:`entmtp.heads.hydra_plus_plus` has the formula.

Source: ``hydra/model/hydra_heads/prefix_mlp_head.py`` in github.com/zankner/Hydra.
"""

from __future__ import annotations

from typing import Any

import torch

from entmtp.errors import EntMTPError
from entmtp.heads.importing.layout import HeadsImport
from entmtp.heads.importing.tensors import Tensors

PREFIX = "prefix_embeding_layer."
_ROTARY_FREQUENCIES = "layers.0.self_attn.rotary_emb.inv_freq"
_LAYER_FIELDS = (
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "rms_norm_eps",
    "rope_parameters",
    "max_position_embeddings",
)
"""Fields of the layer's configuration that are copied from the model's."""


def layer_config(checkpoint: HeadsImport) -> dict[str, Any]:
    """Arguments of the ``LlamaConfig`` of the layer before the heads."""
    model = checkpoint.model_config("'prefix-mlp' heads have a decoder layer like the model's", "its attention heads")
    if model.model_type != "llama":
        raise EntMTPError(
            f"model: 'prefix-mlp' heads are published for models of type 'llama', and this one is of type"
            f" {model.model_type!r}; give --model with the model that they are for"
        )
    head_dim = model.hidden_size // model.num_attention_heads
    return {field: getattr(model, field) for field in _LAYER_FIELDS} | {"head_dim": head_dim}


def prefix_layer(tensors: Tensors, layer: dict[str, Any], vocab: int) -> dict[str, torch.Tensor]:
    """Takes the parameters of :class:`entmtp.heads.hydra_plus_plus.HydraPlusPlusLayer`."""
    hidden, inner, head_dim = layer["hidden_size"], layer["intermediate_size"], layer["head_dim"]
    queries, keys = head_dim * layer["num_attention_heads"], head_dim * layer["num_key_value_heads"]
    shapes = {
        "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, queries),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
    }
    for name, shape in (("embed_tokens.weight", (vocab, hidden)), (_ROTARY_FREQUENCIES, (head_dim // 2,))):
        if PREFIX + name in tensors:
            tensors.take(PREFIX + name, *shape)
    parameters = {
        f"prefix_layer.layer.{name}.weight": tensors.take(f"{PREFIX}layers.0.{name}.weight", *shape)
        for name, shape in shapes.items()
    }
    return parameters | {"prefix_layer.norm.weight": tensors.take(f"{PREFIX}norm.weight", hidden)}
