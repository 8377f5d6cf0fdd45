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

from entmtp.errors import EntMTPError, quoted
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
from entmtp.heads.importing.source import Source

NEUTRAL: dict[str, tuple[Any, ...]] = decoder_fields.NEUTRAL | {
    "parallel_drafting": (False, None),
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
_PARALLEL = "mask_token_id", "ptd_token_id"
"""Fields of heads that draft all depths in one pass."""


class Eagle3Fields(DecoderFields):
    """Fields of a configuration that change what the heads compute."""

    model_type: Literal["llama", "qwen2", "qwen3"] = "llama"
    norm_before_residual: bool | None = None
    norm_before_fc: bool | None = None
    fc_norm: bool | None = None
    norm_output: bool | None = None
    eagle_aux_hidden_state_layer_ids: list[int] | None = None
    eagle_config: dict[str, Any] | None = None
    target_layer_ids: list[int] | None = None


def read_fields(source: Source) -> Eagle3Fields:
    """Reads the configuration of a checkpoint.

    Raises:
        EntMTPError: if a field is unknown, or has a value that these heads can't have.
    """
    flat = flattened(source)
    for name in _PARALLEL:
        if flat.get(name) is not None:
            raise parallel_drafting(source, f"{name} {quoted(flat[name])}")
    if any("peagle" in str(each).lower() for each in (flat.get("architectures"), flat.get("speculators_model_type"))):
        raise parallel_drafting(source, f"architectures {quoted(flat.get('architectures'))}")
    known = {*Eagle3Fields.model_fields, *IRRELEVANT, *NEUTRAL, *_PARALLEL}
    check_known(source, "", flat, known)
    check_neutral(source, "", flat, NEUTRAL)
    fields = Source(source.weights, source.config_path, flat).fields(Eagle3Fields)
    eagle = fields.eagle_config or {}
    check_known(source, "eagle_config.", eagle, {_IDS, *_EAGLE_NEUTRAL})
    check_neutral(source, "eagle_config.", eagle, _EAGLE_NEUTRAL)
    if fields.fc_norm and fields.norm_before_fc:
        raise invalid(source, "fc_norm and norm_before_fc", "are both true; heads have one of them")
    check_attention(source, fields, shared=2)
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
        return entered_layers(source, name, ids, offset, fields.num_target_layers)
    return []


def parallel_drafting(source: Source, found: str) -> EntMTPError:
    """Makes the error for heads that guess all depths in one pass; ``found`` is what shows it."""
    return EntMTPError(
        f"heads: {source.config_path}: {found} is P-EAGLE's, whose heads guess all depths in one pass; only EAGLE-3"
        " heads that run once per depth can be imported"
    )
