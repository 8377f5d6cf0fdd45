"""Configuration of draft heads, as ``config.json`` has it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from types import UnionType
from typing import Any, ClassVar, Self, get_args, get_origin, get_type_hints

from entmtp.errors import EntMTPError, quoted

_BOOKKEEPING = {"architectures", "dtype", "model_type", "torch_dtype", "transformers_version"}
"""Fields of ``config.json`` that do not tell the heads' sizes; some are transformers'."""

_NAMES = {
    int: "a whole number of at least 0",
    float: "a number with a decimal point",
    str: "a text",
    bool: "true or false",
    list: "a list",
}


@dataclass(kw_only=True)
class DraftHeadsConfig:
    """Sizes of draft heads, and the fingerprint of the model that they were trained for ("" if unknown)."""

    model_type: ClassVar[str] = "entmtp_draft_heads"

    hidden_size: int = 576
    vocab_size: int = 49_152
    num_heads: int = 4
    draft_vocab_size: int = 16_384
    model_fingerprint: str = ""

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Self:
        """The configuration of a checkpoint's ``fields``.

        Raises:
            EntMTPError: if a field is unknown, or is of another type.
        """
        types = get_type_hints(cls)
        known = {field.name: types[field.name] for field in dataclasses.fields(cls)}
        given = {name: value for name, value in fields.items() if name not in _BOOKKEEPING}
        for name, value in given.items():
            if name not in known:
                raise EntMTPError(f"{name} is no field of {cls.model_type}")
            if not _is_of(value, known[name]):
                kind = get_origin(known[name]) or known[name]
                raise EntMTPError(f"{name} is {quoted(value)}, not {_NAMES.get(kind, 'a JSON object')}")
        return cls(**given)

    def fields(self) -> dict[str, Any]:
        """Fields for ``config.json``, with the type that the heads are registered by."""
        return {"model_type": self.model_type, **dataclasses.asdict(self)}


def _is_of(value: object, kind: Any) -> bool:
    if kind is int:
        return type(value) is int and value >= 0
    kinds = get_args(kind) if isinstance(kind, UnionType) else (kind,)
    return any(isinstance(value, get_origin(each) or each) for each in kinds)
