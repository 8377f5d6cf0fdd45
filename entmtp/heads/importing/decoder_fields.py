"""Configurations of published heads that have decoder layers: the fields that they share, and checks of them.

A field that an importer does not know is refused by name, since it may change what the heads compute.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

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
    "partial_rotary_factor": (1,),
}
"""Fields with the only values that these heads can have."""

LAYER_CONFIG = "transformer_layer_config"
"""Field in which speculators has the configuration of the layers."""

_MAX_VOCAB = 2**24


class DecoderFields(ConfigFields):
    """Fields of a configuration that change what the layers compute; speculators' nested ones are on one level."""

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
    num_target_layers: int | None = Field(None, ge=1)
    rms_norm_eps: float = Field(gt=0, lt=1)
    max_position_embeddings: int = Field(2048, ge=1)
    rope_theta: float | None = Field(None, gt=0, allow_inf_nan=False)
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None
    attention_bias: bool = False
    tie_word_embeddings: bool = False
    sliding_window: int | None = None
    use_sliding_window: bool | None = None
    layer_types: list[str] | None = None

    @property
    def key_heads(self) -> int:
        """Number of heads of keys and values."""
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def width_of_a_head(self) -> int:
        """``head_dim``, or what the hidden size leaves for each head."""
        return self.head_dim or self.hidden_size // self.num_attention_heads


def flattened(source: Source) -> dict[str, Any]:
    """All fields on one level. Those of speculators' layers are overridden by the heads' own."""
    nested = source.config.get(LAYER_CONFIG)
    if nested is None:
        return source.config
    if not isinstance(nested, dict):
        raise invalid(source, LAYER_CONFIG, f"is {quoted(nested)}, not a JSON object")
    own = {name: value for name, value in source.config.items() if name not in (LAYER_CONFIG, "model_type")}
    return nested | own


def invalid(source: Source, field: str, reason: str) -> EntMTPError:
    """Makes the error for a configuration with this field."""
    return EntMTPError(f"heads: {source.config_path}: {field} {reason}")


def check_known(source: Source, prefix: str, fields: Mapping[str, Any], known: Collection[str]) -> None:
    """Raises EntMTPError for a field that is not ``known``; its name in the message has a ``prefix``."""
    if unknown := sorted(fields.keys() - set(known)):
        raise invalid(
            source,
            quoted(prefix + unknown[0]),
            f"is {quoted(fields[unknown[0]])}, and this importer does not know the field, which may change the heads;"
            " leave it out if it does not",
        )


def check_neutral(
    source: Source, prefix: str, fields: Mapping[str, Any], neutral: Mapping[str, tuple[Any, ...]]
) -> None:
    """Raises EntMTPError for a field with another value than those that are ``neutral``."""
    for name, accepted in neutral.items():
        if name in fields and fields[name] not in accepted:
            raise invalid(
                source, prefix + name, f"is {quoted(fields[name])}; only heads with {accepted[0]!r} can be imported"
            )


def check_attention(source: Source, fields: DecoderFields, shared: int = 1) -> None:
    """Raises EntMTPError for attention within a window, or for sizes of heads that do not fit.

    The hidden size must be a multiple of the heads and of ``shared`` where there is no ``head_dim``.
    """
    windowed = fields.sliding_window is not None and fields.use_sliding_window is not False
    others = {*(fields.layer_types or [])} - {"full_attention"}
    if windowed or fields.use_sliding_window or others:
        raise invalid(
            source,
            "sliding_window" if windowed else "layer_types" if others else "use_sliding_window",
            f"is {quoted(fields.sliding_window if windowed else fields.layer_types or fields.use_sliding_window)};"
            " only heads with full attention can be imported",
        )
    heads, keys = fields.num_attention_heads, fields.key_heads
    if heads % keys or (fields.head_dim is None and fields.hidden_size % (shared * heads)):
        raise invalid(
            source,
            "num_attention_heads",
            f"is {heads}, which does not fit num_key_value_heads {keys} or hidden_size {fields.hidden_size}",
        )
