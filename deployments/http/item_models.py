"""Schemas of the answers of /v1/responses and /v1/messages for the API's document."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from deployments.http.openapi import ERRORS, answers


class ResponseObject(BaseModel):
    """OpenAI's response; see its API reference for the items."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    model: str
    status: Literal["completed", "incomplete", "failed", "in_progress"]
    output: list[dict[str, Any]] = Field(description="items of type reasoning, message and function_call, in order")
    error: dict[str, Any] | None
    incomplete_details: dict[str, Any] | None
    usage: dict[str, Any] | None
    store: Literal[False] = Field(False, description="nothing is stored")


class MessageObject(BaseModel):
    """Anthropic's message; see its API reference for the blocks."""

    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    model: str
    content: list[dict[str, Any]] = Field(description="blocks of type thinking, text and tool_use, in order")
    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"] | None
    stop_sequence: str | None
    usage: dict[str, Any]


class InputTokens(BaseModel):
    """Number of tokens of a prompt."""

    input_tokens: int


class AnthropicErrorDetails(BaseModel):
    """The mistake, and how to put it right."""

    type: str
    message: str


class AnthropicErrorBody(BaseModel):
    """Anthropic's body of an error."""

    type: Literal["error"] = "error"
    error: AnthropicErrorDetails
    request_id: str | None


ANTHROPIC_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {**about, "model": AnthropicErrorBody} for status, about in ERRORS.items()
}
RESPONSE_ANSWERS = answers(ResponseObject, "the response, with its usage")
MESSAGE_ANSWERS = answers(MessageObject, "the message, with its usage") | ANTHROPIC_ERRORS
