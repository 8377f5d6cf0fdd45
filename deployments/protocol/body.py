"""The base of all request bodies, and the types of their fields."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from deployments.protocol.compatibility import NOTHING, ForeignFields

MOST_ITEMS = 1024
"""Longest list of a body: messages, parts of a message, prompts, tools."""

Count = Annotated[int, Field(ge=0, lt=2**31)]
Positive = Annotated[int, Field(ge=1, lt=2**31)]
Text = Annotated[str, Field(max_length=1_000_000)]
Token = Annotated[int, Field(ge=0, lt=2**31)]
"""A token id of any vocabulary. The engine checks it against the model's own."""

Texts = Annotated[list[Text], Field(max_length=MOST_ITEMS, fail_fast=True)]
Tokens = Annotated[list[Token], Field(fail_fast=True)]
TokenLists = Annotated[list[Tokens], Field(max_length=MOST_ITEMS, fail_fast=True)]


def tag_by_type(default: str | None = None) -> Callable[[Any], str]:
    """Discriminator of a union whose members are tagged ``[type]``; an absent type is the ``default``."""

    def tag(given: Any) -> str:
        kind = (given.get("type") or default) if isinstance(given, dict) else getattr(given, "type", default)
        return f"[{kind}]"

    return tag


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
        known = {field.alias or name for name, field in cls.model_fields.items()}
        unknown = next((name for name in own if name not in known), None)
        return {name: value for name, value in own.items() if name in known or name == unknown}

    @classmethod
    def _foreign_fields_of(cls, body: Mapping[str, Any]) -> ForeignFields:
        return cls.foreign
