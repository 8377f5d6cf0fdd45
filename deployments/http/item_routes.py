"""Routes of /v1/responses and /v1/messages, which answer chats in other formats."""

# FastAPI evaluates annotations. Those of the routes name locals, so they must not be strings.

from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import Depends, FastAPI, Request
from fastapi.responses import Response

from deployments.engines.chat_call import ChatCall, prepare_chat
from deployments.engines.client import EngineClient
from deployments.http.access_log import LogEntry
from deployments.http.answering import answer_items
from deployments.http.item_models import ANTHROPIC_ERRORS, MESSAGE_ANSWERS, RESPONSE_ANSWERS, InputTokens
from deployments.protocol.chat_turns import Chat
from deployments.protocol.message_blocks import MessageBlocks
from deployments.protocol.messages_request import CountTokensRequest, MessagesRequest
from deployments.protocol.response_items import ResponseItems
from deployments.protocol.responses_request import ResponsesRequest
from deployments.protocol.schema import ChatRequest


def add_item_routes(api: FastAPI, client: EngineClient, owner: Callable[..., Awaitable[str]]) -> None:
    """Add the routes; ``owner`` is the dependency that checks a request's key."""
    Owner = Annotated[str, Depends(owner)]  # noqa: N806  a type

    async def prepare(chat: ChatRequest, request: Request, key: str) -> ChatCall:
        entry: LogEntry = request.state.entry
        entry.set_body(chat, client.catalogue.models)
        return await prepare_chat(client, entry.id, key, chat)

    @api.post("/v1/responses", tags=["text"], responses=RESPONSE_ANSWERS)
    async def responses(body: ResponsesRequest, request: Request, key: Owner) -> Response:
        """Answer a conversation with items: reasoning, a message, calls. Nothing is stored."""
        chat = body.as_chat()
        call = await prepare(chat, request, key)
        reader = call.answer_format.reader(client.detokenizer(call.engine, chat))
        builder = ResponseItems(body, reader, call.requests[0].id)
        return await answer_items(client, chat, call, builder, request)

    @api.post("/v1/messages", tags=["text"], responses=MESSAGE_ANSWERS)
    async def messages(body: MessagesRequest, request: Request, key: Owner) -> Response:
        """Answer a conversation with blocks, in Anthropic's format."""
        chat = body.as_generation()
        call = await prepare(chat, request, key)
        detokenizer = client.detokenizer(call.engine, chat)
        reader = call.answer_format.reader(detokenizer)
        builder = MessageBlocks(body.model, body.stop_sequences or (), detokenizer, reader, call.requests[0].id)
        return await answer_items(client, chat, call, builder, request)

    @api.post("/v1/messages/count_tokens", tags=["text"], responses=ANTHROPIC_ERRORS)
    async def count_tokens(body: CountTokensRequest, key: Owner) -> InputTokens:
        """Count the tokens of a conversation as the model's template writes it."""
        engine = client.catalogue.find(body.model, None)
        prompt = await client.encode_chat(engine, Chat.of(body.as_chat()))
        return InputTokens(input_tokens=len(prompt.tokens))
