"""The way of a chat to an engine, the same for every endpoint that takes one."""

from __future__ import annotations

from dataclasses import dataclass, replace

from deployments.engines.client import EngineClient
from deployments.protocol.answer_format import AnswerFormat
from deployments.protocol.chat_turns import Chat
from deployments.protocol.errors import invalid_value
from deployments.protocol.forced_calls import forced_calls
from deployments.protocol.schema import ChatRequest
from deployments.protocol.tool_formats.constraint import call_constraint
from deployments.protocol.tool_formats.interface import ToolFormat
from deployments.settings import EngineArgs
from entmtp.decoding.request import Request
from entmtp.errors import EntMTPError
from entmtp.settings import SamplingParams


@dataclass(frozen=True)
class ChatCall:
    """A chat that is ready to run.

    Attributes:
        requests: one for each answer.
    """

    engine: EngineArgs
    requests: list[Request]
    answer_format: AnswerFormat


async def prepare_chat(client: EngineClient, id: str, key: str, body: ChatRequest) -> ChatCall:
    """Check a chat, and write and tokenize it in the template of its model.

    Raises:
        ApiError: it is refused, see :meth:`EngineClient.encode_chat` and :meth:`EngineClient.prepare`.
    """
    engine = client.catalogue.find(body.model, body.speculation)
    chat = Chat.of(body)
    prompt = await client.encode_chat(engine, chat, body)
    requests = await client.prepare(id, key, engine, body, [prompt.tokens], body.default_tokens)
    answer_format = client.template(engine).answer_format(
        chat,
        prompt.text,
        parallel_calls=body.parallel_tool_calls is not False,
        shows_reasoning=body.include_reasoning is not False,
    )
    if body.forced_functions:
        requests, answer_format = _with_forced_calls(body, client.template(engine).tool_format, requests, answer_format)
    return ChatCall(engine, requests, answer_format)


def _with_forced_calls(
    body: ChatRequest, tool_format: ToolFormat, requests: list[Request], answer_format: AnswerFormat
) -> tuple[list[Request], AnswerFormat]:
    """Requests whose answers must be calls, and their format, which a grammar may describe."""
    params = requests[0].params
    if params.structured is not None:
        message = f"tool_choice: {params.structured.field_name} asks for a form of the answer too; give one of them"
        raise invalid_value(message, "tool_choice")
    parameters = {one.name: one.parameters for one in body.forced_functions}
    constraint = call_constraint(tool_format, parameters, answer_format.parallel_calls)
    answer_format = replace(answer_format, tool_format=constraint.tool_format)
    try:
        forced = SamplingParams.parse(**dict(params) | {"structured": forced_calls(constraint, answer_format)})
    except EntMTPError as error:
        raise invalid_value(f"tool_choice: {error}", "tool_choice") from error
    return [replace(one, params=forced) for one in requests], answer_format
