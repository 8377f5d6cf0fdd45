"""A chat as the turns that a chat template takes.

Templates that know tools get the calls and results as they are. For all others the tools are described in the system
message, and calls and results become text in Hermes' format (:mod:`deployments.protocol.tool_formats.hermes`).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deployments.protocol.schema import ChatRequest, Message
from deployments.protocol.tokenize_schema import TokenizeRequest
from deployments.protocol.tool_formats.hermes import CLOSE, OPEN
from deployments.protocol.tools import Tool

Turn = dict[str, Any]

_DESCRIPTION = f"""You can call the functions whose signatures follow in JSON:
<tools>
{{signatures}}
</tools>
To call a function, write its name and arguments as JSON, and end your turn after the last call:
{OPEN}
{{{{"name": NAME, "arguments": ARGUMENTS}}}}
{CLOSE}
The results come between <tool_response> and </tool_response>."""


@dataclass(frozen=True)
class Chat:
    """A chat for a template.

    Attributes:
        variables: further variables of the template.
        field: name of the request's field with the messages.
        adds_header: whether the header of an answer follows the messages; None: unless the last message is continued.
        continues: whether the answer goes on with the last message's text.
    """

    messages: Sequence[Message]
    tools: Sequence[Tool] = ()
    variables: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    field: str = "messages"
    adds_header: bool | None = None
    continues: bool = False

    @classmethod
    def of(cls, body: ChatRequest) -> Chat:
        """The chat of a body."""
        options = {"reasoning_effort": body.reasoning_effort, "verbosity": body.verbosity}
        given = {name: value for name, value in options.items() if value is not None}
        return cls(
            body.messages,
            body.callable_tools,
            given | (body.chat_template_kwargs or {}),
            body.prompt_field,
            body.add_generation_prompt,
            bool(body.continue_final_message),
        )

    @classmethod
    def to_tokenize(cls, body: TokenizeRequest) -> Chat:
        """The chat of a body to tokenize."""
        return cls(
            body.messages or (),
            body.tools or (),
            body.chat_template_kwargs or {},
            adds_header=body.add_generation_prompt,
            continues=bool(body.continue_final_message),
        )


def native_turns(messages: Sequence[Message]) -> list[Turn]:
    """Turns for a template that knows tools."""
    return [_turn(one) for one in messages]


def described_turns(messages: Sequence[Message], tools: Sequence[Tool]) -> list[Turn]:
    """Turns for a template that knows no tools: text alone, in the roles system, user and assistant."""
    turns: list[Turn] = []
    previous = ""
    for message in messages:
        turn = _described(message)
        # Many templates refuse two turns of a user in a row, as results and a question are here.
        if turn["role"] == "user" and turns and turns[-1]["role"] == "user" and "tool" in {message.role, previous}:
            turns[-1]["content"] += f"\n{turn['content']}"
        else:
            turns.append(turn)
        previous = message.role
    return _with_description(turns, tools) if tools else turns


def _turn(message: Message) -> Turn:
    turn: Turn = {"role": "system" if message.role == "developer" else message.role, "content": message.text}
    if message.name:
        turn["name"] = message.name
    if message.tool_calls:
        turn["tool_calls"] = [one.for_template() for one in message.tool_calls]
    if message.role == "tool":
        turn["tool_call_id"] = message.tool_call_id
    if reasoning := message.reasoning_content or message.reasoning:
        turn["reasoning_content"] = reasoning
    return turn


def _described(message: Message) -> Turn:
    turn = _turn(message)
    calls = turn.pop("tool_calls", [])
    if turn.pop("tool_call_id", None):
        return {"role": "user", "content": f"<tool_response>\n{message.text}\n</tool_response>"}
    if calls:
        written = [f"{OPEN}\n{json.dumps(one['function'], ensure_ascii=False)}\n{CLOSE}" for one in calls]
        turn["content"] = "\n".join([message.text, *written] if message.text else written)
    return turn


def _with_description(turns: Sequence[Turn], tools: Sequence[Tool]) -> list[Turn]:
    """The turns with a description of the tools at the end of a system message before all others."""
    signatures = "\n".join(json.dumps(one.function.for_template(), ensure_ascii=False) for one in tools)
    description = _DESCRIPTION.format(signatures=signatures)
    first, rest = (turns[0], turns[1:]) if turns and turns[0]["role"] == "system" else ({"role": "system"}, turns)
    given = first.get("content")
    return [first | {"content": f"{given}\n\n{description}" if given else description}, *rest]
