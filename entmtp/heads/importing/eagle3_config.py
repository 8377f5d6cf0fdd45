"""Configurations of published EAGLE-3 heads. A field that is not known is refused by name, since it may change them.

SafeAILab's and SGLang's are those of a Llama with ``draft_vocab_size`` and further fields; DeepSpec's that of a Qwen3.
speculators' has such a one in ``transformer_layer_config`` and the further fields next to it. The layers of the model
whose states the heads read are counted in two ways:

- by the layer that a state enters: ``eagle_aux_hidden_state_layer_ids`` of speculators;
- by the layer that it leaves, one lower: the same name within SGLang's ``eagle_config``, DeepSpec's
  ``target_layer_ids``.

Without any, they are :func:`entmtp.heads.eagle3.configuration.default_feature_layers`. ``rope_theta`` is 10,000 unless
given, whatever the model's is.

Sources: ``eagle/model/configs.py`` in github.com/SafeAILab/EAGLE, ``src/speculators/models/eagle3/config.py`` in
github.com/vllm-project/speculators, ``configs`` in github.com/sgl-project/SpecForge, ``deepspec/modeling/eagle3`` in
github.com/deepseek-ai/DeepSpec.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field

from entmtp.errors import EntMTPError, quoted
from entmtp.heads.importing.layout import MAX_COUNT
from entmtp.heads.importing.source import ConfigFields, Source

IRRELEVANT = frozenset(
    """_attn_implementation _attn_implementation_autoset _name_or_path add_cross_attention architectures
    attention_dropout attn_implementation auto_map base_model_name_or_path bos_token_id chunk_size_feed_forward
    cross_attention_hidden_size decoder_start_token_id dtype embed_requires_grad enable_sp_ulysses eos_token_id
    finetuning_task has_no_defaults_at_init id2label initializer_range is_decoder is_encoder_decoder label2id
    max_window_layers output_attentions output_hidden_states pad_token_id prefix pretraining_tp problem_type
    pruned_heads return_dict sep_token_id speculators_config speculators_version step_loss_decay
    task_specific_params tf_legacy_loss tie_encoder_decoder tokenizer_class torch_dtype torchscript
    transformers_version ttt_length ttt_steps use_bfloat16 use_cache""".split()
)
"""Fields that do not change what the heads compute."""

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "bias": (False,),
    "hidden_act": ("silu",),
    "mlp_bias": (False,),
    "parallel_drafting": (False, None),
    "partial_rotary_factor": (1,),
    "speculators_model_type": ("eagle3",),
}
"""Fields with the only values that these heads can have."""

_EAGLE_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "bias": (False,),
    "next_layer_regular": (True,),
    "parallel_draft_step": (1,),
    "use_aux_hidden_state": (True,),
    "use_input_layernorm_in_first_layer": (True,),
    "use_last_layernorm": (True,),
    "use_mtp_layernorm": (False,),
}
""":data:`NEUTRAL` within ``eagle_config``."""

_IDS = "eagle_aux_hidden_state_layer_ids"
_LAYER_CONFIG = "transformer_layer_config"
_MAX_VOCAB = 2**24
_PARALLEL = "mask_token_id", "ptd_token_id"
"""Fields of heads that draft all depths in one pass."""


class Eagle3Fields(ConfigFields):
    """Fields of a configuration that change what the heads compute; speculators' nested ones are on one level."""

    model_config = ConfigDict(protected_namespaces=())

    hidden_size: int = Field(ge=1)
    intermediate_size: int = Field(ge=1)
    num_attention_heads: int = Field(ge=1)
    num_key_value_heads: int | None = Field(None, ge=1)
    head_dim: int | None = Field(None, ge=2, multiple_of=2)
    num_hidden_layers: int = Field(ge=1, le=MAX_COUNT)
    vocab_size: int = Field(ge=1, le=_MAX_VOCAB)
    draft_vocab_size: int | None = Field(None, ge=1, le=_MAX_VOCAB)
    target_hidden_size: int | None = Field(None, ge=1)
    rms_norm_eps: float = Field(gt=0, lt=1)
    max_position_embeddings: int = Field(2048, ge=1)
    rope_theta: float | None = Field(None, gt=0, allow_inf_nan=False)
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None
    attention_bias: bool = False
    model_type: Literal["llama", "qwen2", "qwen3"] = "llama"
    tie_word_embeddings: bool = False
    norm_before_residual: bool | None = None
    norm_before_fc: bool | None = None
    fc_norm: bool | None = None
    norm_output: bool | None = None
    eagle_aux_hidden_state_layer_ids: list[int] | None = None
    eagle_config: dict[str, Any] | None = None
    target_layer_ids: list[int] | None = None
    num_target_layers: int | None = Field(None, ge=1)
    sliding_window: int | None = None
    use_sliding_window: bool | None = None
    layer_types: list[str] | None = None


def read_fields(source: Source) -> Eagle3Fields:
    """Reads the configuration of a checkpoint.

    Raises:
        EntMTPError: if a field is unknown, or has a value that these heads can't have.
    """
    flat = _flattened(source)
    for name in _PARALLEL:
        if flat.get(name) is not None:
            raise parallel_drafting(source, f"{name} {quoted(flat[name])}")
    if any("peagle" in str(each).lower() for each in (flat.get("architectures"), flat.get("speculators_model_type"))):
        raise parallel_drafting(source, f"architectures {quoted(flat.get('architectures'))}")
    known = {*Eagle3Fields.model_fields, *IRRELEVANT, *NEUTRAL, *_PARALLEL}
    _check_known(source, "", flat, known)
    _check_neutral(source, "", flat, NEUTRAL)
    fields = Source(source.weights, source.config_path, flat).fields(Eagle3Fields)
    eagle = fields.eagle_config or {}
    _check_known(source, "eagle_config.", eagle, {_IDS, *_EAGLE_NEUTRAL})
    _check_neutral(source, "eagle_config.", eagle, _EAGLE_NEUTRAL)
    _check_agreement(source, fields)
    return fields


def feature_layers(source: Source, fields: Eagle3Fields) -> list[int]:
    """The model's layers whose inputs the heads read; empty if the configuration names none.

    Raises:
        EntMTPError: if they are no ascending layer numbers of the model, or are given twice.
    """
    nested = (fields.eagle_config or {}).get(_IDS)
    given = [
        (name, ids, offset)
        for name, ids, offset in (
            (_IDS, fields.eagle_aux_hidden_state_layer_ids, 0),
            (f"eagle_config.{_IDS}", nested, 1),
            ("target_layer_ids", fields.target_layer_ids, 1),
        )
        if ids is not None and ids != []
    ]
    if len(given) > 1:
        raise invalid(source, " and ".join(name for name, _, _ in given), "are both given; leave out one")
    for name, ids, offset in given:
        if not isinstance(ids, list) or not all(type(each) is int and each >= 0 for each in ids):
            raise invalid(source, name, f"is {quoted(ids)}, not a list of layer numbers")
        layers = [each + offset for each in ids]
        if sorted({*layers}) != layers or (fields.num_target_layers or layers[-1] + 1) <= layers[-1]:
            within = "" if fields.num_target_layers is None else f" of a model with {fields.num_target_layers}"
            raise invalid(source, name, f"is {quoted(ids)}, not layer numbers in ascending order{within}")
        return layers
    return []


def invalid(source: Source, field: str, reason: str) -> EntMTPError:
    """Makes the error for a configuration with this field."""
    return EntMTPError(f"heads: {source.config_path}: {field} {reason}")


def parallel_drafting(source: Source, found: str) -> EntMTPError:
    """Makes the error for heads that guess all depths in one pass; ``found`` is what shows it."""
    return EntMTPError(
        f"heads: {source.config_path}: {found} is P-EAGLE's, whose heads guess all depths in one pass; only EAGLE-3"
        " heads that run once per depth can be imported"
    )


def _flattened(source: Source) -> dict[str, Any]:
    """All fields on one level. Those of speculators' layers are overridden by the heads' own."""
    nested = source.config.get(_LAYER_CONFIG)
    if nested is None:
        return source.config
    if not isinstance(nested, dict):
        raise invalid(source, _LAYER_CONFIG, f"is {quoted(nested)}, not a JSON object")
    own = {name: value for name, value in source.config.items() if name not in (_LAYER_CONFIG, "model_type")}
    return nested | own


def _check_known(source: Source, prefix: str, fields: dict[str, Any], known: set[str]) -> None:
    if unknown := sorted(fields.keys() - known):
        raise invalid(
            source,
            quoted(prefix + unknown[0]),
            f"is {quoted(fields[unknown[0]])}, and this importer does not know the field, which may change the heads;"
            " leave it out if it does not",
        )


def _check_neutral(source: Source, prefix: str, fields: dict[str, Any], neutral: dict[str, tuple[Any, ...]]) -> None:
    for name, accepted in neutral.items():
        if name in fields and fields[name] not in accepted:
            raise invalid(
                source, prefix + name, f"is {quoted(fields[name])}; only heads with {accepted[0]!r} can be imported"
            )


def _check_agreement(source: Source, fields: Eagle3Fields) -> None:
    """Raises EntMTPError for fields that contradict each other."""
    if fields.fc_norm and fields.norm_before_fc:
        raise invalid(source, "fc_norm and norm_before_fc", "are both true; heads have one of them")
    windowed = fields.sliding_window is not None and fields.use_sliding_window is not False
    others = {*(fields.layer_types or [])} - {"full_attention"}
    if windowed or fields.use_sliding_window or others:
        raise invalid(
            source,
            "sliding_window" if windowed else "layer_types" if others else "use_sliding_window",
            f"is {quoted(fields.sliding_window if windowed else fields.layer_types or fields.use_sliding_window)};"
            " only heads with full attention can be imported",
        )
    heads, keys = fields.num_attention_heads, fields.num_key_value_heads or fields.num_attention_heads
    if heads % keys or (fields.head_dim is None and fields.hidden_size % (2 * heads)):
        raise invalid(
            source,
            "num_attention_heads",
            f"is {heads}, which does not fit num_key_value_heads {keys} or hidden_size {fields.hidden_size}",
        )
