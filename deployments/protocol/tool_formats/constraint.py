"""The constraint that makes a model call a function: a JSON schema, and fixed text around it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deployments.protocol.tool_formats.interface import CallFrame, ToolFormat
from deployments.protocol.tool_formats.llama3_json import Llama3Json

_ANY_OBJECT: dict[str, Any] = {"type": "object"}


@dataclass(frozen=True)
class CallConstraint:
    """Text of an answer that consists of calls: one, or several with ``separator`` between them.

    Attributes:
        tool_format: format of the calls, whose parser reads the answer.
        begin: text before the JSON of each call.
        schema: JSON schema of the text between ``begin`` and ``end``. The schemas of the arguments are its ``$defs``.
        end: text after it.
        separator: text between two calls; None if there is exactly one.
    """

    tool_format: ToolFormat
    begin: str
    schema: dict[str, Any]
    end: str
    separator: str | None


def call_constraint(
    tool_format: ToolFormat, parameters: Mapping[str, dict[str, Any] | None], parallel_calls: bool
) -> CallConstraint:
    """Constraint for a call of one of the functions.

    Args:
        tool_format: format of the model's calls. If JSON does not describe it, Llama 3's is used.
        parameters: JSON schema of the arguments by function; None: any object. For a named choice only that function.
        parallel_calls: whether there may be several calls.
    """
    described = tool_format if tool_format.frame is not None else Llama3Json()
    frame = described.frame
    assert frame is not None
    calls = [_call_schema(frame, name) for name in parameters]
    schema: dict[str, Any] = calls[0] if len(calls) == 1 else {"anyOf": calls}
    if frame.lists_calls:
        schema = {"type": "array", "items": schema, "minItems": 1} | ({} if parallel_calls else {"maxItems": 1})
    schema["$defs"] = {name: _moved(one or _ANY_OBJECT, f"#/$defs/{name}") for name, one in parameters.items()}
    repeated = parallel_calls and not frame.lists_calls
    return CallConstraint(described, frame.begin, schema, frame.end, frame.separator if repeated else None)


def _call_schema(frame: CallFrame, name: str) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"name": {"const": name}, frame.arguments_key: {"$ref": f"#/$defs/{name}"}},
        "required": ["name", frame.arguments_key],
        "additionalProperties": False,
    }


def _moved(schema: Any, root: str) -> Any:
    """A schema whose references to its own root lead to ``root``, where it is moved to."""
    if isinstance(schema, list):
        return [_moved(one, root) for one in schema]
    if not isinstance(schema, dict):
        return schema
    moved = {key: _moved(value, root) for key, value in schema.items()}
    if isinstance(reference := schema.get("$ref"), str) and reference.startswith("#"):
        moved["$ref"] = root + reference[1:]
    return moved
