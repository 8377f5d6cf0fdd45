"""The HTTP API: OpenAI's paths, and a few of its own."""

# FastAPI evaluates annotations, and those of the routes name what is local to their factory: they must not be strings.

import asyncio
import json
import logging
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from functools import partial
from typing import Annotated

from fastapi import Depends, FastAPI, Request, Security
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from openai.types import CompletionUsage
from pydantic import BaseModel

from deployments.engines.client import Service, Work
from deployments.engines.deaths import retries
from deployments.http.access_log import AccessLog, Entry, Log
from deployments.http.auth import Keys
from deployments.http.body_limit import BodyLimit
from deployments.http.cors import EXPOSED
from deployments.http.http_methods import HeadAndOptions
from deployments.http.openapi import (
    BEARER,
    CHAT_ANSWERS,
    COMPLETION_ANSWERS,
    ERRORS,
    Health,
    ModelCard,
    ModelList,
    Readiness,
    ServedEngine,
    TokenIds,
    described_api,
)
from deployments.http.usage import usage_of, usage_so_far
from deployments.protocol.errors import ApiError, invalid, tell_errors, unexpected
from deployments.protocol.messages import Delta
from deployments.protocol.responses import Answer, ChatShape, CompletionShape, Shape
from deployments.protocol.schema import (
    COMPLETION_TOKENS,
    ChatRequest,
    CompletionRequest,
    Generation,
    StreamOptions,
    TokenizeRequest,
)
from deployments.protocol.speculative_metrics import metrics_of

_log = logging.getLogger("ray.serve")


def make_api(
    service: Service,
    keys: Keys,
    ready: Callable[[], Awaitable[dict[str, bool]]],
    metrics: Callable[[], Awaitable[str]],
    log: Log,
) -> FastAPI:
    """The application.

    Args:
        ready: says of each engine whether a replica of it runs.
        metrics: the service's metrics as Prometheus reads them.
        log: takes a line for each request.
    """
    api = described_api()
    _add_middlewares(api, service, log)

    async def owner(request: Request, _: Annotated[object, Security(BEARER)]) -> str:
        entry: Entry = request.state.entry
        entry.key = keys.owner(request.headers.get("authorization"))
        return entry.key

    Owner = Annotated[str, Depends(owner)]  # noqa: N806  a type

    @api.post("/v1/chat/completions", tags=["text"], responses=CHAT_ANSWERS)
    async def chat(body: ChatRequest, request: Request, key: Owner) -> Response:
        """Answer the last message of a chat."""
        entry: Entry = request.state.entry
        entry.asks(body, service.catalogue.models)
        engine = service.catalogue.find(body.model, body.speculation)
        prompt = await service.encode_chat(engine, body.messages)
        work = await service.prepare(entry.id, key, engine, body, [prompt], None)
        shape = ChatShape(f"chatcmpl-{uuid.uuid4().hex}", body.model, service.detokenizer(engine), work.calls)
        return await _answer(service, body, work, shape, request)

    @api.post("/v1/completions", tags=["text"], responses=COMPLETION_ANSWERS)
    async def completions(body: CompletionRequest, request: Request, key: Owner) -> Response:
        """Continue a text, or several."""
        entry: Entry = request.state.entry
        entry.asks(body, service.catalogue.models)
        engine = service.catalogue.find(body.model, body.speculation)
        prompts = await service.encode_prompts(engine, body)
        work = await service.prepare(entry.id, key, engine, body, prompts, COMPLETION_TOKENS)
        shape = CompletionShape(f"cmpl-{uuid.uuid4().hex}", body.model, service.detokenizer(engine), work.calls)
        return await _answer(service, body, work, shape, request)

    @api.post("/tokenize", tags=["text"], responses=ERRORS)
    async def tokenize(body: TokenizeRequest, key: Owner) -> TokenIds:
        """Show the token ids of a prompt, or of a chat as the model's template writes it."""
        engine = service.catalogue.find(body.model, None)
        if (body.prompt is None) == (body.messages is None):
            raise invalid("prompt: give either prompt or messages", "prompt")
        if body.messages is not None:
            tokens = await service.encode_chat(engine, body.messages)
        else:
            tokens = await service.encode(engine, body.prompt or "")
        return TokenIds(tokens=tokens, count=len(tokens), max_model_len=service.context(engine))

    @api.get("/v1/models", tags=["models"], responses=ERRORS)
    async def models(key: Owner) -> ModelList:
        """List the served models."""
        return ModelList(data=[_model(service, name) for name in service.catalogue.models])

    @api.get("/v1/models/{name:path}", tags=["models"], responses=ERRORS)
    async def model(name: str, key: Owner) -> ModelCard:
        """Describe one model."""
        service.catalogue.find(name, None)
        return _model(service, name)

    @api.get("/health", tags=["operation"])
    async def health() -> Health:
        """Say that this ingress answers."""
        return Health()

    @api.get(
        "/ready",
        tags=["operation"],
        response_model=Readiness,
        responses={503: {"description": "an engine has no replica yet", "model": Readiness}},
    )
    async def is_ready() -> JSONResponse:
        """Say whether every engine has a replica that runs."""
        engines = await ready()
        return JSONResponse({"engines": engines}, 200 if all(engines.values()) else 503)

    @api.get("/metrics", tags=["operation"], response_class=PlainTextResponse, responses=ERRORS)
    async def all_metrics(key: Owner) -> str:
        """Export the service's metrics for Prometheus."""
        return await metrics()

    return api


def _add_middlewares(api: FastAPI, service: Service, log: Log) -> None:
    """The last one that is added is the first that a request meets."""
    tell_errors(api)
    args = service.args
    api.add_middleware(BodyLimit, size=args.limits.body_bytes, seconds=args.limits.body_seconds)
    api.add_middleware(HeadAndOptions, routes=lambda: api.routes)
    if args.cors_origins:
        api.add_middleware(
            CORSMiddleware,
            allow_origins=args.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=EXPOSED,
        )
    api.add_middleware(AccessLog, log=log, tracing=service.tracing)


async def _answer(service: Service, body: Generation, work: Work, shape: Shape, request: Request) -> Response:
    entry: Entry = request.state.entry
    answers = [Answer() for _ in range(work.answers)]
    entry.answering(work, answers)
    stream = _timely(service.run(work, retries(request.scope)), body.timeout_s, service.args.limits.request_seconds)
    if not body.stream:
        await _gather(stream, answers, entry)
        whole = shape.whole(answers, usage_of(work, answers), metrics_of(answers))
        return JSONResponse(whole.model_dump(mode="json", exclude_unset=True))
    # Before the response is begun, a refusal still has a status of its own.
    first = await anext(stream)
    events = _events(first, stream, work, answers, shape, entry, body.stream_options or StreamOptions())
    return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})


async def _gather(stream: AsyncGenerator[Delta], answers: Sequence[Answer], entry: Entry) -> None:
    async with aclosing(stream):
        async for delta in stream:
            entry.progress()
            answers[delta.index].take(delta)


async def _events(
    first: Delta,
    rest: AsyncGenerator[Delta],
    work: Work,
    answers: Sequence[Answer],
    shape: Shape,
    entry: Entry,
    options: StreamOptions,
) -> AsyncGenerator[str]:
    continuous = options.include_usage and options.continuous_usage_stats
    usage = partial(usage_so_far, work, answers) if continuous else None
    try:
        async with aclosing(rest):
            for index in range(work.answers):
                if (opening := shape.opening(index)) is not None:
                    yield _event(opening, usage)
            async for delta in _with_first(first, rest):
                entry.progress()
                chunk = shape.chunk(delta.index, delta)
                answers[delta.index].take(delta)
                yield _event(chunk, usage)
        if options.include_usage:
            yield _event(shape.closing(usage_of(work, answers), metrics_of(answers)))
        yield "data: [DONE]\n\n"
    except ApiError as error:
        entry.fails(error)
        yield f"data: {json.dumps(error.body())}\n\n"
    except Exception as error:  # the client must hear of it, whatever it is
        _log.exception("request %s: an unexpected error", entry.id)
        told = unexpected(error)
        entry.fails(told)
        yield f"data: {json.dumps(told.body())}\n\n"


async def _with_first(first: Delta, rest: AsyncGenerator[Delta]) -> AsyncGenerator[Delta]:
    yield first
    async for delta in rest:
        yield delta


async def _timely(stream: AsyncGenerator[Delta], own: float | None, most: float) -> AsyncGenerator[Delta]:
    """The stream until the client's ``own`` deadline, or the service's.

    Raises:
        ApiError: when it has passed.
    """
    seconds, field = (own, "timeout_s") if own is not None and own < most else (most, "service")
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    async with aclosing(stream):
        while True:
            try:
                async with asyncio.timeout_at(end):
                    delta = await anext(stream)
            except StopAsyncIteration:
                return
            except TimeoutError:
                message = f"{field}: the answer was not finished within {seconds:g} s; ask for fewer tokens"
                raise ApiError(504, message, code="deadline_exceeded") from None
            yield delta


def _event(chunk: BaseModel, usage: Callable[[], CompletionUsage] | None = None) -> str:
    if usage is not None:
        chunk = chunk.model_copy(update={"usage": usage()})
    return f"data: {chunk.model_dump_json(exclude_unset=True)}\n\n"


def _model(service: Service, name: str) -> ModelCard:
    engines = service.catalogue.models[name]
    return ModelCard(
        id=name,
        max_model_len=max(service.context(one) for one in engines),
        engines=[ServedEngine(method=one.method, policy=one.policy, task=one.task) for one in engines],
    )
