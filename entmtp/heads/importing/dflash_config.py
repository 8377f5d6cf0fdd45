"""Configurations of published DFlash and DSpark heads. A field that is not known is refused by name.

z-lab's and DeepSpec's are those of a Qwen3 with further fields. Some of z-lab's are in ``dflash_config``. speculators'
has such a one in ``transformer_layer_config`` and the further fields next to it. They differ in two counts:

- Layers of the model whose states the heads read: ``target_layer_ids`` of z-lab and DeepSpec count by the layer that a
  state leaves, ``aux_hidden_state_layer_ids`` of speculators by the layer that it enters, one higher.
- Guesses of a block: the states of z-lab's mask tokens guess, one less than ``block_size``. All of DeepSpec's states
  do, the root's own included, in its DFlash heads too. speculators' heads say which (``sample_from_anchor``); those of
  DSpark must, since it changed between versions.

Sources: ``dflash/model.py`` in github.com/z-lab/dflash, ``deepspec/modeling/dspark/qwen3`` in
github.com/deepseek-ai/DeepSpec, ``src/speculators/models/{dflash,dspark}/config.py`` in
github.com/vllm-project/speculators.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from entmtp.errors import quoted
from entmtp.heads.importing import decoder_fields
from entmtp.heads.importing.decoder_fields import (
    IRRELEVANT,
    DecoderFields,
    check_attention,
    check_known,
    check_neutral,
    flattened,
    invalid,
)
from entmtp.heads.importing.feature_layers import entered_layers
from entmtp.heads.importing.layout import MAX_COUNT
from entmtp.heads.importing.source import Source

NEUTRAL: dict[str, tuple[Any, ...]] = decoder_fields.NEUTRAL | {
    "attention_bias": (False,),
    "final_logit_softcapping": (None, 0),
    "input_embedding_scale": (1,),
    "is_causal": (False, None),
    "markov_head_type": ("vanilla",),
    "output_multiplier": (1,),
}
"""Fields with the only values that these heads can have."""

_NESTED = "dflash_config"
_KIND = "speculators_model_type"
_ANCHOR = "sample_from_anchor"
_DSPARK = frozenset({"confidence_head_with_markov", "enable_confidence_head", "markov_head_type", "markov_rank"})


class DFlashFields(DecoderFields):
    """Fields of a configuration that change what the heads compute; nested ones are on one level."""

    model_type: Literal["llama", "qwen3"] = "qwen3"
    block_size: int = Field(ge=1)
    mask_token_id: int = Field(ge=0)
    target_layer_ids: list[int] | None = None
    aux_hidden_state_layer_ids: list[int] | None = None
    sample_from_anchor: bool
    markov_rank: int = Field(0, ge=0, le=2**16)
    enable_confidence_head: bool = False
    confidence_head_with_markov: bool = False


@dataclass(frozen=True)
class _Authors:
    """Conventions of some authors' configurations.

    Attributes:
        ids: field with the model's layers; ``offset`` is what is added to them.
        own: further fields that they use.
        neutral: fields with the only values that they can have, in addition to :data:`NEUTRAL`.
        root_guesses: whether the root's state guesses, unless the configuration says; None if it must.
    """

    ids: str
    offset: int
    own: frozenset[str]
    neutral: dict[str, tuple[Any, ...]]
    root_guesses: bool | None


_QWEN3: dict[str, tuple[Any, ...]] = {"model_type": ("qwen3",)}
_Z_LAB = _Authors("target_layer_ids", 1, frozenset(), _QWEN3, False)
_DEEPSPEC = _Authors("target_layer_ids", 1, _DSPARK | {"num_anchors"}, _QWEN3, True)
_BY_ARCHITECTURE = {"DFlashDraftModel": _Z_LAB, "Qwen3DSparkModel": _DEEPSPEC}
_IDS = "aux_hidden_state_layer_ids"
_OF_SPECULATORS = frozenset({_ANCHOR, "sliding_window_non_causal"})
_BY_KIND = {
    "dflash": _Authors(_IDS, 0, _OF_SPECULATORS, {}, False),
    "dspark": _Authors(_IDS, 0, _OF_SPECULATORS | _DSPARK, {}, None),
}


@dataclass(frozen=True)
class DFlashSource:
    """A configuration that was read.

    Attributes:
        feature_layers: the model's layers whose inputs the heads read.
        num_guesses: states of a block that guess.
    """

    fields: DFlashFields
    feature_layers: list[int]
    num_guesses: int


def read_fields(source: Source) -> DFlashSource:
    """Reads the configuration of a checkpoint.

    Raises:
        EntMTPError: if a field is unknown, or has a value that these heads can't have.
    """
    authors, flat = _speculators(source) if _KIND in source.config else _flat(source)
    known = {"block_size", "mask_token_id", authors.ids, *DecoderFields.model_fields, *IRRELEVANT, *NEUTRAL}
    check_known(source, "", flat, {*known, "model_type", _KIND, *authors.own})
    check_neutral(source, "", flat, NEUTRAL | authors.neutral)
    if authors.root_guesses is not None:
        flat = {_ANCHOR: authors.root_guesses} | flat
    elif _ANCHOR not in flat:
        raise invalid(
            source,
            _ANCHOR,
            "is missing; it tells whether the root's state guesses: add true or false, as the heads were trained",
        )
    fields = Source(source.weights, source.config_path, flat).fields(DFlashFields)
    check_attention(source, fields)
    _check_sizes(source, fields)
    layers = entered_layers(source, authors.ids, flat.get(authors.ids), authors.offset, fields.num_target_layers)
    return DFlashSource(fields, layers, _guesses(source, fields))


def _speculators(source: Source) -> tuple[_Authors, dict[str, Any]]:
    kind = source.config[_KIND]
    if not isinstance(kind, str) or kind not in _BY_KIND:
        known = " or ".join(map(repr, _BY_KIND))
        raise invalid(source, _KIND, f"is {quoted(kind)}; of heads with a block only {known} can be imported")
    return _BY_KIND[kind], flattened(source)


def _flat(source: Source) -> tuple[_Authors, dict[str, Any]]:
    """The authors by the architecture, and all fields on one level."""
    config = source.config
    architectures = config.get("architectures")
    found = architectures[0] if isinstance(architectures, list) and len(architectures) == 1 else None
    if not isinstance(found, str) or found not in _BY_ARCHITECTURE:
        raise invalid(
            source,
            "architectures",
            f"is {quoted(architectures)}; it must be ['DFlashDraftModel'] (z-lab's) or ['Qwen3DSparkModel']"
            " (DeepSpec's), as it tells which token each state of a block guesses",
        )
    nested = config.get(_NESTED, {})
    if not isinstance(nested, dict):
        raise invalid(source, _NESTED, f"is {quoted(nested)}, not a JSON object")
    for name in sorted(nested.keys() & config.keys()):
        if nested[name] != config[name]:
            raise invalid(
                source, f"{_NESTED}.{name}", f"is {quoted(nested[name])} and {name} is {quoted(config[name])}"
            )
    own = {name: value for name, value in config.items() if name != _NESTED}
    return _BY_ARCHITECTURE[found], own | nested


def _check_sizes(source: Source, fields: DFlashFields) -> None:
    """Raises EntMTPError for fields that contradict each other."""
    if fields.target_hidden_size not in (None, fields.hidden_size):
        raise invalid(
            source,
            "target_hidden_size",
            f"is {fields.target_hidden_size} but hidden_size {fields.hidden_size}; only heads as wide as the model can"
            " be imported",
        )
    if fields.mask_token_id >= fields.vocab_size:
        raise invalid(
            source, "mask_token_id", f"is {fields.mask_token_id} but the tokens are 0 to {fields.vocab_size - 1}"
        )
    if fields.enable_confidence_head and fields.confidence_head_with_markov and not fields.markov_rank:
        raise invalid(source, "confidence_head_with_markov", "is True but markov_rank is 0")


def _guesses(source: Source, fields: DFlashFields) -> int:
    guesses = fields.block_size - (not fields.sample_from_anchor)
    if not 1 <= guesses <= MAX_COUNT:
        raise invalid(
            source,
            "block_size",
            f"is {fields.block_size}, for {guesses} guesses; only heads with 1 to {MAX_COUNT} can be imported",
        )
    return guesses
