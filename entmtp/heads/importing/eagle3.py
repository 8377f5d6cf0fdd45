"""EAGLE-3 heads in the layouts of SafeAILab, SGLang and SpecForge, speculators, and DeepSpec.

Files: ``config.json`` (:mod:`entmtp.heads.importing.eagle3_config`) and ``pytorch_model.bin`` or ``model.safetensors``.
Tensors, with H the heads' hidden size, M the model's, and V and D the sizes of its and their vocabularies (each name
may have NeMo's prefix ``model.``):

- ``fc.weight [H, n * M]``, of the model's states at n layers; ``norm.weight [H]``, before the output layer;
- ``midlayer.`` (SafeAILab, SGLang) or ``layers.0.`` (speculators, DeepSpec), the decoder layer:
  ``self_attn.{q,k,v}_proj.weight [.., 2 * H]``, ``self_attn.o_proj.weight``, ``mlp.{gate,up,down}_proj.weight``,
  ``{input_layernorm,hidden_norm,post_attention_layernorm}.weight [H]``, and ``self_attn.{q,k}_norm.weight`` of a Qwen3;
- ``layers.1.`` and so on: further layers like a Llama's, without ``hidden_norm`` and with H inputs;
- ``lm_head.weight [D, H]``, else the model's own; ``embed_tokens.weight [V, H]``, else the model's own;
- ``d2t [D]``: draft token i is the model's token ``i + d2t[i]``; ``t2d [V]``: whether the heads guess a token. Both are
  absent if they guess every token;
- ``input_norm.weight [n * M]`` with ``norm_before_fc``; ``fc_norm.{i}.weight [M]`` with ``fc_norm``.

Sources: ``eagle/model/cnets.py`` in github.com/SafeAILab/EAGLE, ``src/speculators/convert/eagle`` in
github.com/vllm-project/speculators, ``specforge/modeling`` in github.com/sgl-project/SpecForge,
``deepspec/modeling/eagle3`` in github.com/deepseek-ai/DeepSpec.
"""

from __future__ import annotations

from collections.abc import Iterable

from entmtp.heads.eagle3.configuration import default_feature_layers
from entmtp.heads.eagle3.heads import Eagle3Heads
from entmtp.heads.importing.decoder_fields import invalid
from entmtp.heads.importing.draft_vocab import take_draft_vocab
from entmtp.heads.importing.eagle3_config import Eagle3Fields, feature_layers, parallel_drafting, read_fields
from entmtp.heads.importing.eagle3_tensors import Eagle3Sizes, layer_parameters, other_parameters
from entmtp.heads.importing.feature_layers import check_within_model, model_layer_count
from entmtp.heads.importing.layout import HeadsImport, Layout, build_heads
from entmtp.heads.importing.rope import rope_parameters
from entmtp.heads.importing.tensors import Tensors

_FIRST_LAYERS = "midlayer.", "layers.0."
_MASK = "mask_hidden"


def _matches_midlayer(names: Iterable[str]) -> bool:
    return any(name.startswith("midlayer.") for name in names)


def _matches_layers(names: Iterable[str]) -> bool:
    return any(name.startswith("layers.0.self_attn.") for name in names)


def _read(checkpoint: HeadsImport) -> Eagle3Heads:
    tensors, source = checkpoint.tensors, checkpoint.source
    if _MASK in tensors:
        raise parallel_drafting(source, f"tensor '{_MASK}'")
    fields = read_fields(source)
    first = next(prefix for prefix in _FIRST_LAYERS if any(name.startswith(prefix) for name in tensors))
    layers = _feature_layers(checkpoint, fields)
    sizes = Eagle3Sizes.of(fields, len(layers) or 3, norms_heads=_norms_heads(tensors, first, fields))
    own_output, own_embeddings = "lm_head.weight" in tensors, "embed_tokens.weight" in tensors
    if sizes.hidden != sizes.model_hidden and not (own_output and own_embeddings):
        raise invalid(
            source,
            "target_hidden_size",
            f"is {sizes.model_hidden} but hidden_size {sizes.hidden}; then embed_tokens.weight and lm_head.weight must"
            " be there, since the model's don't fit",
        )
    if fields.tie_word_embeddings and own_embeddings and not own_output:
        raise invalid(source, "tie_word_embeddings", "is True; heads that share one table can't be imported")
    draft_vocab = take_draft_vocab(tensors, fields.vocab_size, fields.draft_vocab_size, own_output)
    parameters = other_parameters(tensors, sizes, len(draft_vocab))
    for layer in range(fields.num_hidden_layers):
        parameters |= layer_parameters(tensors, sizes, layer, f"layers.{layer}." if layer else first)
    _note_residual(checkpoint, fields)
    return build_heads(
        Eagle3Heads,
        parameters,
        draft_vocab,
        hidden_size=sizes.model_hidden,
        vocab_size=fields.vocab_size,
        feature_layers=layers,
        draft_hidden_size=sizes.hidden,
        num_layers=fields.num_hidden_layers,
        intermediate_size=sizes.inner,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.key_heads,
        head_dim=sizes.head_dim,
        attention_bias=sizes.bias,
        attention_output_bias=sizes.output_bias,
        norms_heads=sizes.norms_heads,
        rms_norm_eps=fields.rms_norm_eps,
        max_position_embeddings=fields.max_position_embeddings,
        rope_parameters=rope_parameters(source, fields),
        norm_before_residual=bool(fields.norm_before_residual),
        norm_before_fc=sizes.norms_features,
        fc_norm=sizes.norms_each_feature,
        norm_output=bool(fields.norm_output),
        own_embeddings=own_embeddings,
        own_output=own_output,
    )


def _feature_layers(checkpoint: HeadsImport, fields: Eagle3Fields) -> list[int]:
    """The model's layers whose inputs the heads read; empty if they are chosen once the model is known."""
    layers = feature_layers(checkpoint.source, fields)
    count = model_layer_count(checkpoint, fields.num_target_layers)
    if count is None:
        if not layers:
            checkpoint.notes.append(
                "config.json names no layers whose states the heads read: those of EAGLE-3's authors are taken when the"
                " heads are loaded"
            )
        return layers
    if not layers:
        return default_feature_layers(count)
    check_within_model(checkpoint.source, layers, count)
    return layers


def _norms_heads(tensors: Tensors, first: str, fields: Eagle3Fields) -> bool:
    """Whether queries and keys have norms: a Qwen3's have, and SGLang calls such a layer a Llama's too."""
    return fields.model_type == "qwen3" or f"{first}self_attn.q_norm.weight" in tensors


def _note_residual(checkpoint: HeadsImport, fields: Eagle3Fields) -> None:
    if fields.norm_before_residual is None and "speculators_model_type" in checkpoint.source.config:
        checkpoint.notes.append(
            "config.json has no norm_before_residual, so it is taken as false: heads by RedHatAI need it to be true, or"
            " few of their guesses are accepted"
        )


def _summary(heads: Eagle3Heads) -> str:
    config = heads.config
    named = ", ".join(map(str, config.feature_layers))
    read = f"inputs of layers {named}" if named else "inputs of the default layers"
    output = "an output layer" if config.own_output else "the model's output layer"
    layers = "1 layer" if config.num_layers == 1 else f"{config.num_layers} layers"
    return (
        f"EAGLE-3 heads of {layers} on the {read}, {output} for {config.draft_vocab_size} tokens, trees of depth"
        f" {config.num_heads}"
    )


EAGLE3 = Layout(
    "EAGLE-3's, as of its authors and SGLang (tensors like midlayer.self_attn.q_proj.weight)",
    _matches_midlayer,
    _read,
    _summary,
)
SPECULATORS = Layout(
    "EAGLE-3's, as of speculators and DeepSpec (tensors like layers.0.self_attn.q_proj.weight)",
    _matches_layers,
    _read,
    _summary,
)
