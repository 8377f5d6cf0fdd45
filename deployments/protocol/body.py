"""Base of all request bodies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, model_validator

from deployments.protocol.compatibility import NOTHING, ForeignFields


class Body(BaseModel):
    """A JSON body. The first unknown field is an error, and so is a number in quotes."""

    model_config = ConfigDict(extra="forbid", strict=True)
    foreign: ClassVar[ForeignFields] = NOTHING

    @model_validator(mode="before")
    @classmethod
    def _own_fields(cls, body: Any) -> Any:
        if not isinstance(body, dict):
            return body
        own = cls._foreign_fields_of(body).strip_from(body)
        # Pydantic would report every unknown field, of which a body can have very many.
        unknown = next((name for name in own if name not in cls.model_fields), None)
        return {name: value for name, value in own.items() if name in cls.model_fields or name == unknown}

    @classmethod
    def _foreign_fields_of(cls, body: Mapping[str, Any]) -> ForeignFields:
        return cls.foreign
