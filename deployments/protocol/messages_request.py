"""Bodies of POST /v1/messages and /v1/messages/count_tokens, Anthropic's Messages, as a chat."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Discriminator, Field, FiniteFloat, Tag, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from deployments.protocol.body import MOST_ITEMS, Body, Positive, Text, tag_by_type
from deployments.protocol.compatibility import ForeignFields
from deployments.protocol.schema import ChatRequest, Message, Speculation
from deployments.protocol.structured_fields import JsonSchema, ResponseFormat
from deployments.protocol.tools import (
    CalledFunction,
    CallId,
    FunctionDefinition,
    FunctionName,
    FunctionReference,
    JsonObject,
    MessageToolCall,
    NamedChoice,
    Tool,
    check_parameters,
    check_tool_choice,
    check_tool_names,
)

_CACHING = ForeignFields({}, frozenset({"cache_control"}))
"""Prefixes are cached without being requested."""

_OF_CALLS = ForeignFields({"caller": (), "toolset_name": ()}, frozenset({"cache_control"}))


class TextBlock(Body):
    """A text."""

    foreign: ClassVar[ForeignFields] = ForeignFields({}, frozenset({"cache_control", "citations"}))

    type: Literal["text"]
    text: Text


class ThinkingBlock(Body):
    """Reasoning that the model wrote."""

    type: Literal["thinking"]
    thinking: Text
    signature: Text | None = Field(None, description="taken and ignored")


class ToolUseBlock(Body):
    """A call that the model made."""

    foreign: ClassVar[ForeignFields] = _OF_CALLS

    type: Literal["tool_use"]
    id: CallId
    name: FunctionName
    input: JsonObject


def _text_or_blocks(content: Any) -> str:
    return "[blocks]" if isinstance(content, list) else "[text]"


TextBlocks = Annotated[list[TextBlock], Field(max_length=MOST_ITEMS, fail_fast=True)]
TextContent = Annotated[
    Annotated[Text, Tag("[text]")] | Annotated[TextBlocks, Tag("[blocks]")], Discriminator(_text_or_blocks)
]


class ToolResultBlock(Body):
    """The result of a call."""

    foreign: ClassVar[ForeignFields] = _OF_CALLS

    type: Literal["tool_result"]
    tool_use_id: CallId
    content: TextContent | None = None
    is_error: bool | None = None


Block = Annotated[
    Annotated[TextBlock, Tag("[text]")]
    | Annotated[ThinkingBlock, Tag("[thinking]")]
    | Annotated[ToolUseBlock, Tag("[tool_use]")]
    | Annotated[ToolResultBlock, Tag("[tool_result]")],
    Discriminator(
        tag_by_type(),
        custom_error_type="block_type",
        custom_error_message="blocks here are text, thinking, tool_use and tool_result; send these",
    ),
]
Blocks = Annotated[list[Block], Field(max_length=MOST_ITEMS, fail_fast=True)]


class MessageTurn(Body):
    """One turn of a chat."""

    role: Literal["user", "assistant", "system"]
    content: Annotated[
        Annotated[Text, Tag("[text]")] | Annotated[Blocks, Tag("[blocks]")], Discriminator(_text_or_blocks)
    ]

    def as_chat(self) -> Iterator[Message]:
        """The turn as messages of a chat: those of the results of calls, and the text."""
        text = self.content
        blocks: list[Block] = [TextBlock(type="text", text=text)] if isinstance(text, str) else text
        if self.role == "assistant":
            yield self._as_assistant(blocks)
            return
        texts: list[str] = []
        for block in blocks:
            if isinstance(block, ToolResultBlock):
                text = text_of(block.content)
                written = f"Error: {text}" if block.is_error else text
                yield Message(role="tool", content=written, tool_call_id=block.tool_use_id)
            elif isinstance(block, TextBlock):
                texts.append(block.text)
        if texts:
            yield Message(role=self.role, content="\n".join(texts))

    def _as_assistant(self, blocks: list[Block]) -> Message:
        calls = [
            MessageToolCall(id=one.id, function=CalledFunction(name=one.name, arguments=json.dumps(one.input)))
            for one in blocks
            if isinstance(one, ToolUseBlock)
        ]
        return Message(
            role="assistant",
            content="".join(one.text for one in blocks if isinstance(one, TextBlock)) or None,
            reasoning_content="".join(one.thinking for one in blocks if isinstance(one, ThinkingBlock)) or None,
            tool_calls=calls or None,
        )


def text_of(content: str | list[TextBlock] | None) -> str:
    """The texts of a content, one after another."""
    return content if isinstance(content, str) else "\n".join(one.text for one in content or ())


def _custom_only(kind: Any) -> Any:
    if kind not in {None, "custom"}:
        raise PydanticCustomError("tool_type", "tools of the server are not here; send tools with an 'input_schema'")
    return kind


class MessageTool(Body):
    """A function that the model may call."""

    foreign: ClassVar[ForeignFields] = ForeignFields(
        {"defer_loading": (False,), "allowed_callers": (["direct"],), "input_examples": ([],)},
        frozenset({"cache_control", "eager_input_streaming"}),
    )

    type: Annotated[Literal["custom"] | None, BeforeValidator(_custom_only)] = None
    name: FunctionName
    description: Text | None = None
    input_schema: dict[str, Any]
    strict: bool | None = Field(None, description="taken: a forced call always keeps to the schema")

    @field_validator("input_schema")
    @classmethod
    def _describes_an_object(cls, given: dict[str, Any]) -> dict[str, Any]:
        check_parameters(given)
        return given

    def as_tool(self) -> Tool:
        """The same tool as of a chat."""
        function = FunctionDefinition.model_construct(
            name=self.name, description=self.description, parameters=self.input_schema, strict=self.strict
        )
        return Tool(type="function", function=function)


class MessageToolChoice(Body):
    """Choice among the tools."""

    type: Literal["auto", "any", "tool", "none"]
    name: FunctionName | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(Body):
    """Whether the model writes reasoning, for chat templates that can switch it."""

    foreign: ClassVar[ForeignFields] = ForeignFields({}, frozenset({"budget_tokens"}))

    type: Literal["enabled", "disabled", "adaptive"]
    display: Literal["summarized", "omitted"] | None = None


class MessageFormat(JsonSchema):
    """Form of the answer."""

    type: Literal["json_schema"]


class OutputConfig(Body):
    """Options of the output."""

    foreign: ClassVar[ForeignFields] = ForeignFields({"task_budget": ()})

    format: MessageFormat | None = None
    effort: Annotated[str, Field(max_length=64)] | None = Field(None, description="for chat templates that know it")


class MessageMetadata(Body):
    """Data about the request."""

    user_id: Annotated[str, Field(max_length=512)] | None = Field(None, description="goes into the log, as a hash")


class MessagesChat(ChatRequest):
    """A chat whose ``max_tokens`` is cut to the context.

    Anthropic's API requires the field, so clients send large values that they do not mean.
    """

    @property
    def default_tokens(self) -> int | None:
        return self.max_tokens

    @property
    def schema_field(self) -> str:
        return "output_config.format.schema"

    def requested_tokens(self) -> None:
        return None


_IGNORED = frozenset(
    {
        *("betas", "cache_control", "context_management", "diagnostics", "inference_geo", "service_tier", "speed"),
        *("user_profile_id", "workspace_id"),
    }
)


class CountTokensRequest(Body):
    """Body of POST /v1/messages/count_tokens."""

    foreign: ClassVar[ForeignFields] = ForeignFields({"mcp_servers": ([],)}, _IGNORED)

    model: Annotated[str, Field(max_length=256)] = Field(description="one of those that /v1/models lists")
    messages: list[MessageTurn] = Field(min_length=1, max_length=MOST_ITEMS, fail_fast=True)
    system: TextContent | None = Field(None, description="a system message before all others")
    tools: Annotated[list[MessageTool], Field(max_length=MOST_ITEMS, fail_fast=True)] | None = Field(
        None, description="functions that the model may call"
    )
    tool_choice: MessageToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    chat_template_kwargs: JsonObject | None = Field(None, description="variables of the model's chat template")

    @field_validator("messages")
    @classmethod
    def _ends_with_a_user(cls, turns: list[MessageTurn]) -> list[MessageTurn]:
        if turns[-1].role == "assistant":
            raise PydanticCustomError("assistant_last", "an assistant's turn is not continued; end with a user's")
        return turns

    @field_validator("tools")
    @classmethod
    def _has_no_doubles(cls, tools: list[MessageTool] | None) -> list[MessageTool] | None:
        check_tool_names([one.name for one in tools or ()])
        return tools

    @field_validator("tool_choice")
    @classmethod
    def _names_a_tool(cls, choice: MessageToolChoice | None, info: ValidationInfo) -> MessageToolChoice | None:
        if choice is not None and choice.type in {"any", "tool"}:
            wanted = "required" if choice.type == "any" else choice
            check_tool_choice(wanted, [one.name for one in info.data.get("tools") or ()])
            if choice.type == "tool" and choice.name is None:
                raise PydanticCustomError("no_tool", "a choice of type 'tool' names a tool; give its 'name'")
        return choice

    def as_chat(self, **more: Any) -> MessagesChat:
        """The same request as a chat, with ``more`` fields."""
        system = text_of(self.system)
        messages = [Message(role="system", content=system)] if system else []
        messages += [message for turn in self.messages for message in turn.as_chat()]
        switch = {} if self.thinking is None else _switch(self.thinking)
        choice = self.tool_choice or MessageToolChoice(type="auto")
        output = self.output_config or OutputConfig()
        fields = {
            "model": self.model,
            "messages": messages,
            "tools": [one.as_tool() for one in self.tools] if self.tools else None,
            "tool_choice": _as_choice(choice),
            "parallel_tool_calls": not choice.disable_parallel_tool_use,
            "reasoning_effort": output.effort,
            "response_format": output.format and ResponseFormat(type="json_schema", json_schema=output.format),
            "chat_template_kwargs": switch | (self.chat_template_kwargs or {}),
            "include_reasoning": self.thinking is None or self.thinking.display != "omitted",
        }
        return MessagesChat.model_construct(**fields, **more)


class MessagesRequest(CountTokensRequest):
    """Body of POST /v1/messages."""

    foreign: ClassVar[ForeignFields] = ForeignFields({"mcp_servers": ([],), "container": ()}, _IGNORED)

    max_tokens: Positive = Field(description="new tokens, at most")
    temperature: FiniteFloat | None = Field(None, description="0 takes the likeliest token")
    top_p: FiniteFloat | None = Field(None, description="only the likeliest tokens that have this much together")
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = Field(None, description="-1 or 0: all")
    stop_sequences: (
        Annotated[list[Annotated[str, Field(min_length=1, max_length=1024)]], Field(max_length=16)] | None
    ) = Field(None, description="texts that end the answer; left out of it")
    stream: bool | None = Field(None, description="answer in server-sent events, as the text is written")
    metadata: MessageMetadata | None = None
    timeout_s: FiniteFloat | None = Field(None, gt=0, description="a deadline shorter than the service's own")
    speculation: Speculation | None = None

    def as_generation(self) -> MessagesChat:
        """The same request as a chat to answer."""
        same = ("max_tokens", "temperature", "top_p", "top_k", "stream", "timeout_s", "speculation")
        user = None if self.metadata is None else self.metadata.user_id
        return self.as_chat(stop=self.stop_sequences, user=user, **{name: getattr(self, name) for name in same})


def _switch(thinking: Thinking) -> dict[str, bool]:
    return dict.fromkeys(("enable_thinking", "thinking"), thinking.type != "disabled")


def _as_choice(choice: MessageToolChoice) -> Any:
    if choice.type == "tool":
        return NamedChoice(type="function", function=FunctionReference(name=str(choice.name)))
    return {"any": "required", "auto": "auto", "none": "none"}[choice.type]
