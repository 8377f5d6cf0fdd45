"""Answers to requests for text: complete, or as a stream of server-sent events."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from functools import partial

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from openai.types import CompletionUsage
from pydantic import BaseModel

from deployments.engines.chat_call import ChatCall
from deployments.engines.client import EngineClient
from deployments.engines.deaths import retries_left
from deployments.http.access_log import LogEntry
from deployments.http.usage import usage_of, usage_so_far
from deployments.protocol.errors import ApiError, unexpected_error
from deployments.protocol.item_builder import Event, ItemBuilder
from deployments.protocol.responses import ResponseBuilder
from deployments.protocol.schema import GenerationRequest, StreamOptions
from deployments.protocol.speculative_metrics import metrics_of
from deployments.settings import EngineArgs
from entmtp.decoding.outputs import RequestOutput
from entmtp.decoding.request import Request as Call

_log = logging.getLogger("ray.serve")

Outputs = AsyncGenerator[tuple[int, RequestOutput]]
"""Outputs of a body's requests to the engine as they arrive, each with the index of its choice."""


async def answer(
    client: EngineClient, body: GenerationRequest, engine: EngineArgs, builder: ResponseBuilder, request: Request
) -> Response:
    """Answer in the format of ``builder``, with one choice or several."""
    entry: LogEntry = request.state.entry
    requests, answers = builder.requests, builder.answers
    outputs = _run(client, body, engine, requests, answers, request)
    if not body.stream:
        await _gather(outputs, answers, entry)
        full_response = builder.full_response(usage_of(engine, requests, answers), metrics_of(answers))
        return JSONResponse(full_response.model_dump(mode="json", exclude_unset=True))
    # Wait for the first output before the response begins, so that a refusal can still set the status.
    first = await anext(outputs)
    events = _events(first, outputs, engine, builder, entry, body.stream_options or StreamOptions())
    return _streamed(events)


async def answer_items(
    client: EngineClient, body: GenerationRequest, call: ChatCall, builder: ItemBuilder, request: Request
) -> Response:
    """Answer in the format of ``builder``, as items or blocks of one answer."""
    entry: LogEntry = request.state.entry
    answers = [builder.answer]
    usage = partial(usage_of, call.engine, call.requests, answers)
    outputs = _run(client, body, call.engine, call.requests, answers, request)
    if not body.stream:
        async with aclosing(outputs):
            async for _, output in outputs:
                entry.mark_token()
                builder.events(output)
        return JSONResponse(builder.result(usage()))
    first = await anext(outputs)
    return _streamed(_item_events(first, outputs, builder, entry, usage))


def _run(
    client: EngineClient,
    body: GenerationRequest,
    engine: EngineArgs,
    requests: Sequence[Call],
    answers: Sequence[RequestOutput],
    request: Request,
) -> Outputs:
    """Outputs of the requests, until the deadline; the log reads ``answers``."""
    entry: LogEntry = request.state.entry
    entry.set_answers(engine.name, requests, answers)
    outputs = client.run(engine, requests, retries_left(request.scope))
    return _with_deadline(outputs, body.timeout_s, client.args.limits.request_seconds)


def _streamed(events: AsyncGenerator[str]) -> StreamingResponse:
    return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})


async def _item_events(
    first: tuple[int, RequestOutput],
    rest: Outputs,
    builder: ItemBuilder,
    entry: LogEntry,
    usage: Callable[[], CompletionUsage],
) -> AsyncGenerator[str]:
    try:
        async with aclosing(rest):
            for event in builder.begin(usage()):
                yield _named_event(event)
            async for _, output in _with_first(first, rest):
                entry.mark_token()
                for event in builder.events(output):
                    yield _named_event(event)
        for event in builder.end(usage()):
            yield _named_event(event)
    except Exception as error:  # report any error to the client, as the status is sent already
        for event in builder.failed(_reported(error, entry)):
            yield _named_event(event)


def _reported(error: Exception, entry: LogEntry) -> ApiError:
    """Error that a stream ends with, which is also logged."""
    reported = error
    if not isinstance(reported, ApiError):
        _log.error("request %s: an unexpected error", entry.id, exc_info=error)
        reported = unexpected_error(error)
    entry.set_error(reported)
    return reported


async def _gather(outputs: Outputs, answers: Sequence[RequestOutput], entry: LogEntry) -> None:
    async with aclosing(outputs):
        async for index, output in outputs:
            entry.mark_token()
            answers[index].add(output)


async def _events(
    first: tuple[int, RequestOutput],
    rest: Outputs,
    engine: EngineArgs,
    builder: ResponseBuilder,
    entry: LogEntry,
    options: StreamOptions,
) -> AsyncGenerator[str]:
    continuous = options.include_usage and options.continuous_usage_stats
    requests, answers = builder.requests, builder.answers
    usage = partial(usage_so_far, requests, answers) if continuous else None
    try:
        async with aclosing(rest):
            for index in range(len(answers)):
                if (first_chunk := builder.first_chunk(index)) is not None:
                    yield _event(first_chunk, usage)
            async for index, output in _with_first(first, rest):
                entry.mark_token()
                chunks = builder.chunks(index, output)
                answers[index].add(output)
                for chunk in chunks:
                    yield _event(chunk, usage)
        if options.include_usage:
            yield _event(builder.usage_chunk(usage_of(engine, requests, answers), metrics_of(answers)))
        yield "data: [DONE]\n\n"
    except Exception as error:  # report any error to the client, as the status is sent already
        yield f"data: {json.dumps(_reported(error, entry).body())}\n\n"


async def _with_first(first: tuple[int, RequestOutput], rest: Outputs) -> Outputs:
    yield first
    async for item in rest:
        yield item


async def _with_deadline(outputs: Outputs, requested: float | None, limit: float) -> Outputs:
    """Yield the outputs until the deadline: the client's ``requested`` seconds, or the service's ``limit``.

    Raises:
        ApiError: the deadline has passed.
    """
    seconds, field = (requested, "timeout_s") if requested is not None and requested < limit else (limit, "service")
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    async with aclosing(outputs):
        while True:
            try:
                async with asyncio.timeout_at(end):
                    item = await anext(outputs)
            except StopAsyncIteration:
                return
            except TimeoutError:
                message = f"{field}: the answer was not finished within {seconds:g} s; ask for fewer tokens"
                raise ApiError(504, message, code="deadline_exceeded") from None
            yield item


def _event(chunk: BaseModel, usage: Callable[[], CompletionUsage] | None = None) -> str:
    if usage is not None:
        chunk = chunk.model_copy(update={"usage": usage()})
    return f"data: {chunk.model_dump_json(exclude_unset=True)}\n\n"


def _named_event(event: Event) -> str:
    return f"event: {event.name}\ndata: {json.dumps(event.data)}\n\n"
