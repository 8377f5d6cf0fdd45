"""Tools in requests: functions that the model may call, its calls, and the choice among them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from deployments.protocol.body import MOST_ITEMS, Body, Text
from entmtp.errors import quoted

FunctionName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:-]{1,128}$")]
T = TypeVar("T")

_DEEPEST = 64
CallId = Annotated[str, Field(min_length=1, max_length=256)]


def _function_only(kind: Any) -> Any:
    if kind != "function":
        raise PydanticCustomError("tool_type", "models here call functions alone; send tools of type 'function'")
    return kind


JsonObject = Annotated[dict[str, Any], AfterValidator(lambda given: check_depth(given))]
"""An object that is not nested too deep."""

FunctionType = Annotated[Literal["function"], BeforeValidator(_function_only)]


def check_parameters(parameters: dict[str, Any] | None) -> dict[str, Any] | None:
    """Check that the schema of a function's arguments describes an object, and :func:`check_depth`.

    Raises:
        PydanticCustomError: it describes something else, or is too deep.
    """
    if parameters and parameters.get("type", "object") != "object":
        raise PydanticCustomError("not_an_object", "arguments are an object; give a JSON schema of type 'object'")
    return check_depth(parameters)


def check_depth(value: T) -> T:
    """Check that a value is not nested so deep that Python can't write it.

    Raises:
        PydanticCustomError: it is.
    """
    if not _is_within(value, _DEEPEST):
        raise PydanticCustomError("too_deep", "it is nested more than {most} deep; give less", {"most": _DEEPEST})
    return value


def _is_within(value: Any, depth: int) -> bool:
    if not isinstance(value, dict | list):
        return True
    inner = value.values() if isinstance(value, dict) else value
    return depth > 0 and all(_is_within(one, depth - 1) for one in inner)


class FunctionDefinition(Body):
    """A function that the model may call."""

    name: FunctionName
    description: Text | None = None
    parameters: dict[str, Any] | None = Field(None, description="JSON schema of the arguments; null: none")
    strict: bool | None = Field(None, description="taken: a forced call always keeps to the schema")

    @field_validator("parameters")
    @classmethod
    def _describes_an_object(cls, given: dict[str, Any] | None) -> dict[str, Any] | None:
        return check_parameters(given)

    def for_template(self) -> dict[str, Any]:
        """The function as chat templates expect it."""
        parameters = self.parameters or {"type": "object", "properties": {}}
        function = {"name": self.name, "description": self.description or "", "parameters": parameters}
        return {"type": "function", "function": function}


class Tool(Body):
    """A tool; all tools are functions."""

    type: FunctionType
    function: FunctionDefinition


class FunctionReference(Body):
    """Name of a function."""

    name: FunctionName


class NamedChoice(Body):
    """Choice of one function, which the model must call."""

    type: FunctionType
    function: FunctionReference


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("[word]")] | Annotated[NamedChoice, Tag("[named]")],
    Discriminator(lambda choice: "[word]" if isinstance(choice, str) else "[named]"),
]


class CalledFunction(Body):
    """A function with the arguments of a call."""

    name: FunctionName
    arguments: Text = Field(description="a JSON object")

    @field_validator("arguments")
    @classmethod
    def _is_an_object(cls, given: str) -> str:
        parsed_arguments(given)
        return given


class MessageToolCall(Body):
    """A call in an assistant's message."""

    id: CallId
    type: FunctionType = "function"
    function: CalledFunction

    def for_template(self) -> dict[str, Any]:
        """The call as chat templates expect it, with the arguments as an object."""
        called = {"name": self.function.name, "arguments": parsed_arguments(self.function.arguments)}
        return {"id": self.id, "type": "function", "function": called}


ToolCalls = Annotated[list[MessageToolCall], Field(max_length=MOST_ITEMS, fail_fast=True)]


def parsed_arguments(arguments: str) -> dict[str, Any]:
    """Arguments of a call as an object; no text stands for none.

    Raises:
        PydanticCustomError: they are not a JSON object, or too deep.
    """
    try:
        parsed = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        parsed = None
    if not isinstance(parsed, dict):
        raise PydanticCustomError(
            "not_an_object", "a call's arguments must be a JSON object; send it as it was received"
        )
    return check_depth(parsed)


Tools = Annotated[list[Tool], Field(max_length=MOST_ITEMS, fail_fast=True)]


def check_tool_names(names: Sequence[str]) -> None:
    """Raise PydanticCustomError if two tools have the same name."""
    if double := next((name for name, count in Counter(names).items() if count > 1), None):
        raise PydanticCustomError("double", "two tools have the name {name}; give each its own", {"name": double})


def check_tool_choice(choice: Any, names: Sequence[str]) -> None:
    """Raise PydanticCustomError if the choice is a tool's name that is not among ``names``, or there are no tools.

    Args:
        choice: a word, or a named choice.
    """
    if choice == "required" and not names:
        raise PydanticCustomError("no_tool", "there are no tools to call; give 'tools'")
    name = choice.function.name if isinstance(choice, NamedChoice) else getattr(choice, "name", None)
    if name is not None and name not in names:
        context = {"name": quoted(name)}
        raise PydanticCustomError("no_tool", "no tool has the name {name}; choose one of 'tools'", context)


class ToolFields(Body):
    """Fields of a chat that concern tools, and variables of its template."""

    tools: Tools | None = Field(None, description="functions that the model may call")
    tool_choice: ToolChoice | None = Field(
        None, description="'auto': the model decides, the default; 'none': no call; 'required' or a function: a call"
    )
    parallel_tool_calls: bool | None = Field(None, description="false: at most one call in an answer")
    chat_template_kwargs: JsonObject | None = Field(None, description="variables of the model's chat template")
    reasoning_effort: Annotated[str, Field(max_length=64)] | None = Field(
        None, description="for chat templates that know it; where they only switch reasoning, 'none' turns it off"
    )
    verbosity: Annotated[str, Field(max_length=64)] | None = Field(None, description="for chat templates that know it")
    include_reasoning: bool | None = Field(None, description="false: reasoning is left out of the answer")

    @field_validator("tools")
    @classmethod
    def _has_no_doubles(cls, tools: list[Tool] | None) -> list[Tool] | None:
        check_tool_names([one.function.name for one in tools or ()])
        return tools

    @field_validator("tool_choice")
    @classmethod
    def _names_a_tool(cls, choice: Any, info: ValidationInfo) -> Any:
        check_tool_choice(choice, [one.function.name for one in info.data.get("tools") or ()])
        return choice

    @property
    def callable_tools(self) -> list[Tool]:
        """Tools that the model may call."""
        return [] if self.tool_choice == "none" else self.tools or []

    @property
    def forced_functions(self) -> list[FunctionDefinition]:
        """Functions of which the answer must call one; none if the model decides."""
        if isinstance(self.tool_choice, NamedChoice):
            name = self.tool_choice.function.name
            return [one.function for one in self.tools or () if one.function.name == name]
        return [one.function for one in self.tools or ()] if self.tool_choice == "required" else []
