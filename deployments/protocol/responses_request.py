"""Body of POST /v1/responses, OpenAI's Responses, as a chat.

The service stores nothing: a request has the whole conversation in its ``input``, as with ``store`` false.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, FiniteFloat, Tag, ValidationInfo, field_validator
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
    FunctionType,
    JsonObject,
    MessageToolCall,
    NamedChoice,
    Tool,
    check_tool_choice,
    check_tool_names,
    parsed_arguments,
)

_OF_ITEMS = frozenset({"id", "status", "phase"})
# OpenAI's client for Python writes `async` of an answer's item as `async_`.
_OF_CALLS: dict[str, tuple[object, ...]] = {"async": (False,), "async_": (False,), "namespace": (), "caller": ()}


class InputPart(Body):
    """A text in a message or in a call's output."""

    foreign: ClassVar[ForeignFields] = ForeignFields(
        {}, frozenset({"annotations", "logprobs", "prompt_cache_breakpoint"})
    )

    type: Literal["input_text", "output_text", "text", "reasoning_text", "summary_text"]
    text: Text


Parts = Annotated[
    Annotated[Text, Tag("[text]")]
    | Annotated[list[InputPart], Field(max_length=MOST_ITEMS, fail_fast=True), Tag("[parts]")],
    Discriminator(lambda content: "[parts]" if isinstance(content, list) else "[text]"),
]


def _joined(parts: str | list[InputPart] | None) -> str:
    return parts if isinstance(parts, str) else "".join(one.text for one in parts or ())


class InputMessage(Body):
    """A message."""

    foreign: ClassVar[ForeignFields] = ForeignFields({}, _OF_ITEMS)

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Parts


class InputCall(Body):
    """A call that the model made."""

    foreign: ClassVar[ForeignFields] = ForeignFields(_OF_CALLS, _OF_ITEMS)

    type: Literal["function_call"]
    call_id: CallId
    name: FunctionName
    arguments: Text

    @field_validator("arguments")
    @classmethod
    def _is_an_object(cls, given: str) -> str:
        parsed_arguments(given)
        return given


class InputCallOutput(Body):
    """The result of a call."""

    foreign: ClassVar[ForeignFields] = ForeignFields(_OF_CALLS, _OF_ITEMS | {"name"})

    type: Literal["function_call_output"]
    call_id: CallId
    output: Parts


class InputReasoning(Body):
    """Reasoning that the model wrote."""

    foreign: ClassVar[ForeignFields] = ForeignFields({}, _OF_ITEMS | {"summary", "encrypted_content"})

    type: Literal["reasoning"]
    content: Annotated[list[InputPart], Field(max_length=MOST_ITEMS, fail_fast=True)] | None = None


Item = Annotated[
    Annotated[InputMessage, Tag("[message]")]
    | Annotated[InputCall, Tag("[function_call]")]
    | Annotated[InputCallOutput, Tag("[function_call_output]")]
    | Annotated[InputReasoning, Tag("[reasoning]")],
    Discriminator(
        tag_by_type("message"),
        custom_error_type="item_type",
        custom_error_message="items here are messages, function_call, function_call_output and reasoning; send these",
    ),
]


class _Typed(Body):
    type: FunctionType


class ResponseTool(FunctionDefinition, _Typed):
    """A function, whose fields are those of the tool itself; the type is checked first."""

    foreign: ClassVar[ForeignFields] = ForeignFields(
        {"async": (False,), "defer_loading": (False,), "output_schema": (), "allowed_callers": (["direct"],)}
    )


class ResponseNamedChoice(Body):
    """Choice of one function, which the model must call."""

    type: FunctionType
    name: FunctionName


ResponseToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("[word]")] | Annotated[ResponseNamedChoice, Tag("[named]")],
    Discriminator(lambda choice: "[word]" if isinstance(choice, str) else "[named]"),
]


class ReasoningOptions(Body):
    """Options of the reasoning."""

    foreign: ClassVar[ForeignFields] = ForeignFields({}, frozenset({"summary", "generate_summary", "context", "mode"}))

    effort: Annotated[str, Field(max_length=64)] | None = Field(None, description="for chat templates that know it")


class ResponseTextFormat(JsonSchema):
    """Form of the answer. The fields of a schema are those of type json_schema."""

    type: Literal["text", "json_object", "json_schema"]

    def as_chats(self) -> ResponseFormat:
        """The same form as a chat's ``response_format``."""
        schema = self if self.type == "json_schema" else None
        return ResponseFormat.model_construct(type=self.type, json_schema=schema)


class TextOptions(Body):
    """Options of the text."""

    format: ResponseTextFormat | None = None
    verbosity: Annotated[str, Field(max_length=64)] | None = Field(None, description="for chat templates that know it")


class ResponsesChat(ChatRequest):
    """A chat whose fields have the names of Responses in errors."""

    prompt_field: ClassVar[str] = "input"

    @property
    def tokens_field(self) -> str:
        return "max_output_tokens"

    @property
    def format_field(self) -> str:
        return "text.format"

    @property
    def schema_field(self) -> str:
        return "text.format.schema"


class ResponsesRequest(Body):
    """Body of POST /v1/responses."""

    foreign: ClassVar[ForeignFields] = ForeignFields(
        {
            "access_programs": ([],),
            "background": (False,),
            "background_options": (),
            "context_management": ([],),
            "conversation": (),
            "image": (),
            "include": ([], ["reasoning.encrypted_content"]),  # reasoning is never encrypted
            "max_tool_calls": (),
            "moderation": (),
            "prompt": (),
            "top_logprobs": (0,),
            "truncation": ("disabled",),
        },
        frozenset(
            {
                *("client_metadata", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention"),
                *("safety_identifier", "service_tier", "store", "stream_options"),
            }
        ),
    )

    model: Annotated[str, Field(max_length=256)] = Field(description="one of those that /v1/models lists")
    input: Annotated[
        Annotated[Text, Tag("[text]")]
        | Annotated[list[Item], Field(min_length=1, max_length=MOST_ITEMS, fail_fast=True), Tag("[items]")],
        Discriminator(lambda given: "[items]" if isinstance(given, list) else "[text]"),
    ] = Field(description="a user's text, or the items of the whole conversation")
    instructions: Text | None = Field(None, description="a system message before all others")
    max_output_tokens: Positive | None = Field(None, description="new tokens, at most")
    temperature: FiniteFloat | None = Field(None, description="0 takes the likeliest token")
    top_p: FiniteFloat | None = Field(None, description="only the likeliest tokens that have this much together")
    tools: Annotated[list[ResponseTool], Field(max_length=MOST_ITEMS, fail_fast=True)] | None = Field(
        None, description="functions that the model may call"
    )
    tool_choice: ResponseToolChoice | None = Field(None, description="'auto' is the default, 'none' calls nothing")
    parallel_tool_calls: bool | None = Field(None, description="false: at most one call in an answer")
    reasoning: ReasoningOptions | None = None
    text: TextOptions | None = None
    stream: bool | None = Field(None, description="answer in server-sent events, as the text is written")
    previous_response_id: str | None = Field(None, description="refused: nothing is stored")
    metadata: JsonObject | None = Field(None, description="comes back in the response")
    user: Annotated[str, Field(max_length=512)] | None = Field(None, description="goes into the log, as a hash")
    chat_template_kwargs: JsonObject | None = Field(None, description="variables of the model's chat template")
    timeout_s: FiniteFloat | None = Field(None, gt=0, description="a deadline shorter than the service's own")
    speculation: Speculation | None = None

    @field_validator("previous_response_id")
    @classmethod
    def _is_none(cls, given: str | None) -> None:
        if given is not None:
            fix = "responses are not stored here; leave it out, and send the earlier items in 'input'"
            raise PydanticCustomError("not_stored", "{fix}", {"fix": fix})

    @field_validator("tools")
    @classmethod
    def _has_no_doubles(cls, tools: list[ResponseTool] | None) -> list[ResponseTool] | None:
        check_tool_names([one.name for one in tools or ()])
        return tools

    @field_validator("tool_choice")
    @classmethod
    def _names_a_tool(cls, choice: Any, info: ValidationInfo) -> Any:
        check_tool_choice(choice, [one.name for one in info.data.get("tools") or ()])
        return choice

    def as_chat(self) -> ResponsesChat:
        """The same request as a chat."""
        text, reasoning = self.text or TextOptions(), self.reasoning or ReasoningOptions()
        choice: Any = self.tool_choice
        if isinstance(choice, ResponseNamedChoice):
            choice = NamedChoice(type="function", function=FunctionReference(name=choice.name))
        return ResponsesChat.model_construct(
            model=self.model,
            messages=self._messages(),
            max_tokens=self.max_output_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            tools=[_as_tool(one) for one in self.tools] if self.tools else None,
            tool_choice=choice,
            parallel_tool_calls=self.parallel_tool_calls,
            reasoning_effort=reasoning.effort,
            verbosity=text.verbosity,
            response_format=None if text.format is None else text.format.as_chats(),
            chat_template_kwargs=self.chat_template_kwargs,
            stream=self.stream,
            user=self.user,
            timeout_s=self.timeout_s,
            speculation=self.speculation,
        )

    def _messages(self) -> list[Message]:
        """The conversation; items that the model wrote one after another are one message of a chat."""
        items = [InputMessage(role="user", content=self.input)] if isinstance(self.input, str) else self.input
        messages = [Message(role="system", content=self.instructions)] if self.instructions else []
        for item in items:
            message = _as_message(item)
            last = messages[-1] if messages else None
            if last is not None and last.role == message.role == "assistant":
                messages[-1] = _merged(last, message)
            else:
                messages.append(message)
        return messages


def _as_message(item: InputMessage | InputCall | InputCallOutput | InputReasoning) -> Message:
    if isinstance(item, InputMessage):
        return Message(role=item.role, content=_joined(item.content))
    if isinstance(item, InputCall):
        function = CalledFunction(name=item.name, arguments=item.arguments)
        return Message(role="assistant", tool_calls=[MessageToolCall(id=item.call_id, function=function)])
    if isinstance(item, InputCallOutput):
        return Message(role="tool", content=_joined(item.output), tool_call_id=item.call_id)
    return Message(role="assistant", reasoning_content=_joined(item.content) or None)


def _merged(first: Message, second: Message) -> Message:
    """One message of an assistant that has what both have."""
    return Message(
        role="assistant",
        content=first.text + second.text or None,
        tool_calls=[*(first.tool_calls or ()), *(second.tool_calls or ())] or None,
        reasoning_content=f"{first.reasoning_content or ''}{second.reasoning_content or ''}" or None,
    )


def _as_tool(tool: ResponseTool) -> Tool:
    fields = {name: getattr(tool, name) for name in FunctionDefinition.model_fields}
    return Tool(type="function", function=FunctionDefinition.model_construct(**fields))
