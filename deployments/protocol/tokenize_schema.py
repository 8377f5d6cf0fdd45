"""Bodies of vLLM's /tokenize and /detokenize."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field, model_validator

from deployments.protocol.body import Body, Text, Tokens
from deployments.protocol.compatibility import TOKENIZE, TOKENIZE_CHAT, ForeignFields
from deployments.protocol.schema import Messages, refuse_two_ends
from deployments.protocol.tools import JsonObject, Tools


class DetokenizeRequest(Body):
    """Body of POST /detokenize."""

    model: Annotated[str, Field(max_length=256)]
    tokens: Tokens


class TokenizeRequest(Body):
    """Body of POST /tokenize: a text, or a chat to which the chat template is applied."""

    foreign: ClassVar[ForeignFields] = TOKENIZE

    model: Annotated[str, Field(max_length=256)]
    prompt: Text | None = None
    messages: Messages | None = None
    tools: Tools | None = Field(None, description="functions that the chat template describes")
    chat_template_kwargs: JsonObject | None = Field(None, description="variables of the model's chat template")
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None

    @model_validator(mode="after")
    def _one_end(self) -> TokenizeRequest:
        refuse_two_ends(self.add_generation_prompt, self.continue_final_message)
        return self

    @classmethod
    def _foreign_fields_of(cls, body: Mapping[str, Any]) -> ForeignFields:
        return cls.foreign if body.get("messages") is None else TOKENIZE_CHAT
