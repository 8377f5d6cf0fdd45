"""The way of a chat to an engine, the same for every endpoint that takes one."""

from __future__ import annotations

from dataclasses import dataclass

from deployments.engines.client import EngineClient
from deployments.protocol.answer_format import AnswerFormat
from deployments.protocol.chat_turns import Chat
from deployments.protocol.errors import invalid_value
from deployments.protocol.schema import ChatRequest
from deployments.settings import EngineArgs
from entmtp.decoding.request import Request


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
    if body.forced_functions:
        message = "tool_choice: a call can't be forced here; send 'auto', and ask for the call in the last message"
        raise invalid_value(message, "tool_choice")
    chat = Chat.of(body)
    prompt = await client.encode_chat(engine, chat)
    requests = await client.prepare(id, key, engine, body, [prompt.tokens], body.default_tokens)
    answer_format = client.template(engine).answer_format(
        chat,
        prompt.text,
        parallel_calls=body.parallel_tool_calls is not False,
        shows_reasoning=body.include_reasoning is not False,
    )
    return ChatCall(engine, requests, answer_format)
