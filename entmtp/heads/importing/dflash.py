"""DFlash and DSpark heads in the layouts of z-lab, DeepSpec and speculators.

Files: ``config.json`` (:mod:`entmtp.heads.importing.dflash_config`) and ``model.safetensors`` or ``pytorch_model.bin``.
Tensors, with H the model's hidden size, V and D the sizes of its and the heads' vocabularies, and r ``markov_rank``:

- ``fc.weight [H, n * H]``, of the model's states at n layers; ``hidden_norm.weight [H]`` after it;
- ``layers.i.``, the decoder layers: ``self_attn.{q,k,v}_proj.weight [.., H]``, ``self_attn.o_proj.weight``,
  ``self_attn.{q,k}_norm.weight``, ``mlp.{gate,up,down}_proj.weight``,
  ``{input_layernorm,post_attention_layernorm}.weight [H]``;
- ``norm.weight [H]``, before the output layer;
- ``lm_head.weight [D, H]``, else the model's own; ``embed_tokens.weight [V, H]``, else the model's own;
- ``d2t [D]`` and ``t2d [V]`` as EAGLE-3's;
- of DSpark ``markov_head.markov_w1.weight [V, r]`` and ``markov_head.markov_w2.weight [D, r]``, and
  ``confidence_head.proj.weight [1, H]`` or ``[1, H + r]`` with ``confidence_head.proj.bias [1]``.

:mod:`entmtp.heads.importing.dflash_config` has the sources.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from entmtp.heads.dflash.heads import DFlashHeads
from entmtp.heads.importing.decoder_fields import invalid
from entmtp.heads.importing.dflash_config import DFlashFields, read_fields
from entmtp.heads.importing.draft_vocab import take_draft_vocab
from entmtp.heads.importing.feature_layers import check_within_model, model_layer_count
from entmtp.heads.importing.layout import HeadsImport, Layout, build_heads
from entmtp.heads.importing.rope import rope_parameters
from entmtp.heads.importing.tensors import Tensors


def _matches(names: Iterable[str]) -> bool:
    """Whether there is one norm after ``fc`` next to decoder layers: EAGLE-3's is within its first layer."""
    found = set(names)
    return "hidden_norm.weight" in found and any(name.startswith("layers.0.self_attn.") for name in found)


def _read(checkpoint: HeadsImport) -> DFlashHeads:
    tensors, source = checkpoint.tensors, checkpoint.source
    read = read_fields(source)
    fields, layers = read.fields, read.feature_layers
    if (count := model_layer_count(checkpoint, fields.num_target_layers)) is not None:
        check_within_model(source, layers, count)
    own_output, own_embeddings = "lm_head.weight" in tensors, "embed_tokens.weight" in tensors
    if fields.tie_word_embeddings and own_embeddings and not own_output:
        raise invalid(source, "tie_word_embeddings", "is True; heads that share one table can't be imported")
    draft_vocab = take_draft_vocab(tensors, fields.vocab_size, fields.draft_vocab_size, own_output)
    parameters = _other_parameters(tensors, fields, len(layers), len(draft_vocab))
    for layer in range(fields.num_hidden_layers):
        parameters |= _layer_parameters(tensors, fields, layer)
    return build_heads(
        DFlashHeads,
        parameters,
        draft_vocab,
        hidden_size=fields.hidden_size,
        vocab_size=fields.vocab_size,
        num_heads=read.num_guesses,
        feature_layers=layers,
        num_layers=fields.num_hidden_layers,
        intermediate_size=fields.intermediate_size,
        num_attention_heads=fields.num_attention_heads,
        num_key_value_heads=fields.key_heads,
        head_dim=fields.width_of_a_head,
        rms_norm_eps=fields.rms_norm_eps,
        max_position_embeddings=fields.max_position_embeddings,
        rope_parameters=rope_parameters(source, fields),
        own_embeddings=own_embeddings,
        own_output=own_output,
        block_size=fields.block_size,
        mask_token=fields.mask_token_id,
        root_guesses=fields.sample_from_anchor,
        markov_rank=fields.markov_rank,
        has_confidence=fields.enable_confidence_head,
        confidence_reads_token=_confidence_reads_token(fields),
    )


def _confidence_reads_token(fields: DFlashFields) -> bool:
    return fields.enable_confidence_head and fields.confidence_head_with_markov


def _layer_parameters(tensors: Tensors, fields: DFlashFields, layer: int) -> dict[str, torch.Tensor]:
    """Parameters of a decoder layer."""
    hidden, head_dim, inner = fields.hidden_size, fields.width_of_a_head, fields.intermediate_size
    queries, keys = fields.num_attention_heads * head_dim, fields.key_heads * head_dim

    def taken(name: str, *shape: int) -> torch.Tensor:
        return tensors.take(f"layers.{layer}.{name}.weight", *shape)

    parameters = {
        "queries.weight": taken("self_attn.q_proj", queries, hidden),
        "keys_values.weight": torch.cat([taken(f"self_attn.{each}_proj", keys, hidden) for each in ("k", "v")]),
        "attention_output.weight": taken("self_attn.o_proj", hidden, queries),
        "gate_up.weight": torch.cat([taken(f"mlp.{each}_proj", inner, hidden) for each in ("gate", "up")]),
        "down.weight": taken("mlp.down_proj", hidden, inner),
        "input_norm": taken("input_layernorm", hidden),
        "mlp_norm": taken("post_attention_layernorm", hidden),
        "query_norm": taken("self_attn.q_norm", head_dim),
        "key_norm": taken("self_attn.k_norm", head_dim),
    }
    return {f"weights.layers.{layer}.{name}": tensor for name, tensor in parameters.items()}


def _other_parameters(
    tensors: Tensors, fields: DFlashFields, features: int, draft_vocab: int
) -> dict[str, torch.Tensor]:
    """Parameters outside the decoder layers."""
    hidden, vocab, rank = fields.hidden_size, fields.vocab_size, fields.markov_rank
    parameters = {
        "fc": tensors.take("fc.weight", hidden, features * hidden),
        "context_norm": tensors.take("hidden_norm.weight", hidden),
        "norm": tensors.take("norm.weight", hidden),
    }
    if "lm_head.weight" in tensors:
        parameters["output"] = tensors.take("lm_head.weight", draft_vocab, hidden)
    if "embed_tokens.weight" in tensors:
        parameters["embeddings"] = tensors.take("embed_tokens.weight", vocab, hidden)
    if rank:
        parameters["markov_tokens"] = tensors.take("markov_head.markov_w1.weight", vocab, rank)
        parameters["markov_output"] = tensors.take("markov_head.markov_w2.weight", draft_vocab, rank)
    if fields.enable_confidence_head:
        read = hidden + rank if _confidence_reads_token(fields) else hidden
        parameters["confidence"] = tensors.take("confidence_head.proj.weight", 1, read)
        parameters["confidence_bias"] = tensors.take("confidence_head.proj.bias", 1)
    return {f"weights.{name}": tensor for name, tensor in parameters.items()}


def _summary(heads: DFlashHeads) -> str:
    config = heads.config
    kind = "DSpark" if config.markov_rank else "DFlash"
    output = "an output layer" if config.own_output else "the model's output layer"
    layers = "1 layer" if config.num_layers == 1 else f"{config.num_layers} layers"
    return (
        f"{kind} heads of {layers} on the inputs of layers {', '.join(map(str, config.feature_layers))}, {output} for"
        f" {config.draft_vocab_size} tokens, blocks of {config.block_size} tokens, trees of depth {config.num_heads}"
    )


DFLASH = Layout(
    "DFlash's and DSpark's, as of z-lab, DeepSpec and speculators (tensors like hidden_norm.weight and"
    " layers.0.self_attn.q_proj.weight)",
    _matches,
    _read,
    _summary,
)
