"""Rotary parameters of published heads with decoder layers, in transformers' present form."""

from __future__ import annotations

from typing import Any

from entmtp.errors import quoted
from entmtp.heads.importing.decoder_fields import DecoderFields, invalid
from entmtp.heads.importing.source import Source

THETA = 10_000.0
"""``rope_theta`` where a configuration has none."""

_PARAMETERS = {
    "default": frozenset[str](),
    "linear": frozenset({"factor"}),
    "llama3": frozenset({"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}),
    "yarn": frozenset(
        {
            "attention_factor",
            "beta_fast",
            "beta_slow",
            "factor",
            "mscale",
            "mscale_all_dim",
            "original_max_position_embeddings",
            "truncate",
        }
    ),
}
"""Parameters by type. Types whose frequencies depend on the length of the text are not among them."""

_REQUIRED = {"linear": ("factor",), "llama3": tuple(sorted(_PARAMETERS["llama3"])), "yarn": ("factor",)}


def rope_parameters(source: Source, fields: DecoderFields) -> dict[str, Any]:
    """The parameters, from ``rope_theta`` with ``rope_scaling``, or from ``rope_parameters``.

    Raises:
        EntMTPError: if they are of another type, incomplete or unknown.
    """
    name = "rope_parameters" if fields.rope_parameters else "rope_scaling"
    given = dict(fields.rope_parameters or fields.rope_scaling or {})
    if fields.rope_parameters and fields.rope_scaling:
        raise invalid(source, "rope_parameters and rope_scaling", "are both given; leave out one")
    kinds = {given.pop(key) for key in ("rope_type", "type") if isinstance(given.get(key), str)} or {"default"}
    thetas = {each for each in (given.pop("rope_theta", None), fields.rope_theta) if each is not None} or {THETA}
    kind, theta = kinds.pop(), thetas.pop()
    if kinds or kind not in _PARAMETERS:
        raise invalid(source, f"{name}.rope_type", f"is {kind!a}; only {', '.join(_PARAMETERS)} can be imported")
    if thetas or not isinstance(theta, int | float) or theta <= 0:
        raise invalid(source, "rope_theta", f"is {quoted(theta)} and also something else, or no number above 0")
    given = {key: value for key, value in given.items() if value is not None}
    if unknown := sorted(given.keys() - _PARAMETERS[kind]):
        raise invalid(source, quoted(f"{name}.{unknown[0]}"), f"is unknown for the type '{kind}'; leave it out")
    for key in _REQUIRED.get(kind, ()):
        if not _is_positive(given.get(key)):
            raise invalid(source, f"{name}.{key}", f"is {quoted(given.get(key))}, not a number above 0")
    for key, value in given.items():
        if not (isinstance(value, bool) if key == "truncate" else _is_positive(value)):
            raise invalid(source, f"{name}.{key}", f"is {quoted(value)}, not a number above 0")
    return {"rope_type": kind, "rope_theta": float(theta), **given}


def _is_positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")
