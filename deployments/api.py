"""The HTTP API: OpenAI's paths, and a few of its own."""

# FastAPI evaluates annotations, and those of the routes name what is local to their factory: they must not be strings.

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Header, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse

from deployments.access_log import AccessLog, Entry, Log
from deployments.answers import Answer, ChatShape, CompletionShape, Shape
from deployments.auth import Keys
from deployments.body import BodyLimit
from deployments.deaths import retries
from deployments.errors import ApiError, tell_errors, unexpected
from deployments.messages import Delta
from deployments.schema import COMPLETION_TOKENS, ChatRequest, CompletionRequest, Generation, TokenizeRequest
from deployments.service import Service, Work
from deployments.usage import usage_of
from entmtp import __version__

_log = logging.getLogger("ray.serve")
_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"description": about, "content": {"application/json": {"schema": {"type": "object"}}}}
    for status, about in {
        400: "a field is wrong; the body names it",
        401: "no key, or not one of this service's",
        404: "no such model",
        408: "the body came too slowly, or the request's own deadline has passed",
        413: "the body is too large",
        429: "try again after the header Retry-After",
        500: "the engine failed on this text",
        503: "no engine can be reached",
        504: "the service's deadline has passed",
    }.items()
}


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
    api = FastAPI(title="EntMTP", version=__version__, docs_url="/docs", redoc_url=None)
    limits = service.args.limits
    api.add_middleware(BodyLimit, size=limits.body_bytes, seconds=limits.body_seconds)

    async def owner(request: Request, authorization: Annotated[str | None, Header()] = None) -> str:
        key = keys.owner(authorization)
        request.state.entry.key = key
        return key

    Owner = Annotated[str, Depends(owner)]  # noqa: N806  a type

    @api.post("/v1/chat/completions", responses=_ERRORS)
    async def chat(body: ChatRequest, request: Request, key: Owner) -> Response:
        entry: Entry = request.state.entry
        entry.asks(body)
        engine = service.catalogue.find(body.model, body.speculation)
        prompt = await service.encode_chat(engine, body.messages)
        work = await service.prepare(entry.id, key, engine, body, [prompt], None)
        shape = ChatShape(f"chatcmpl-{entry.id}", body.model, service.tokenizer(engine))
        return await _answer(service, body, work, shape, request)

    @api.post("/v1/completions", responses=_ERRORS)
    async def completions(body: CompletionRequest, request: Request, key: Owner) -> Response:
        entry: Entry = request.state.entry
        entry.asks(body)
        engine = service.catalogue.find(body.model, body.speculation)
        prompts = [
            await service.encode(engine, prompt) if isinstance(prompt, str) else prompt for prompt in body.prompts()
        ]
        work = await service.prepare(entry.id, key, engine, body, prompts, COMPLETION_TOKENS)
        shape = CompletionShape(f"cmpl-{entry.id}", body.model, service.tokenizer(engine))
        return await _answer(service, body, work, shape, request)

    @api.post("/tokenize", responses=_ERRORS)
    async def tokenize(body: TokenizeRequest, key: Owner) -> dict[str, Any]:
        engine = service.catalogue.find(body.model, None)
        if (body.prompt is None) == (body.messages is None):
            raise ApiError(400, "prompt: give either prompt or messages", param="prompt")
        if body.messages is not None:
            tokens = await service.encode_chat(engine, body.messages)
        else:
            tokens = await service.encode(engine, body.prompt or "")
        return {"tokens": tokens, "count": len(tokens), "max_model_len": service.context(engine)}

    @api.get("/v1/models", responses=_ERRORS)
    async def models(key: Owner) -> dict[str, Any]:
        return {"object": "list", "data": [_model(service, name) for name in service.catalogue.models]}

    @api.get("/v1/models/{name}", responses=_ERRORS)
    async def model(name: str, key: Owner) -> dict[str, Any]:
        service.catalogue.find(name, None)
        return _model(service, name)

    @api.get("/health")
    async def health() -> dict[str, str]:
        """Whether this ingress answers."""
        return {"status": "ok"}

    @api.get("/ready", responses={503: {"description": "an engine has no replica yet"}})
    async def is_ready() -> JSONResponse:
        """Whether every engine has a replica that runs."""
        engines = await ready()
        return JSONResponse({"engines": engines}, 200 if all(engines.values()) else 503)

    @api.get("/metrics", response_class=PlainTextResponse, responses=_ERRORS)
    async def all_metrics(key: Owner) -> str:
        return await metrics()

    tell_errors(api)
    api.add_middleware(AccessLog, log=log, tracing=service.tracing)  # the last one is outside of all others
    return api


async def _answer(service: Service, body: Generation, work: Work, shape: Shape, request: Request) -> Response:
    entry: Entry = request.state.entry
    answers = [Answer() for _ in range(work.answers)]
    entry.answering(work, answers)
    stream = _timely(service.run(work, retries(request.scope)), body.timeout_s, service.args.limits.request_seconds)
    if not body.stream:
        await _gather(stream, answers, entry)
        return JSONResponse(shape.whole(answers, usage_of(work, answers)).model_dump(mode="json", exclude_unset=True))
    # Before the response is begun, a refusal still has a status of its own.
    first = await anext(stream)
    options = body.stream_options
    events = _events(first, stream, work, answers, shape, entry, usage=options is not None and options.include_usage)
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
    *,
    usage: bool,
) -> AsyncGenerator[str]:
    try:
        async with aclosing(rest):
            for index in range(work.answers):
                if (opening := shape.opening(index)) is not None:
                    yield _event(opening)
            async for delta in _with_first(first, rest):
                entry.progress()
                answer = answers[delta.index]
                yield _event(shape.chunk(delta.index, delta, len(answer.text)))
                answer.take(delta)
        if usage:
            yield _event(shape.closing(usage_of(work, answers)))
        yield "data: [DONE]\n\n"
    except ApiError as error:
        entry.fails(error)
        yield f"data: {json.dumps(error.body())}\n\n"
    except Exception as error:  # the client must hear of it, whatever it is
        _log.exception("request %s: an error that nobody expected", entry.id)
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
        ApiError: when it has passed: 408 for the client's, 504 for the service's.
    """
    seconds, status = (own, 408) if own is not None and own < most else (most, 504)
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
                message = f"timeout_s: the answer was not finished within {seconds:g} s; ask for fewer tokens"
                raise ApiError(status, message) from None
            yield delta


def _event(chunk: Any) -> str:
    return f"data: {chunk.model_dump_json(exclude_unset=True)}\n\n"


def _model(service: Service, name: str) -> dict[str, Any]:
    engines = service.catalogue.models[name]
    return {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": "entmtp",
        "max_model_len": max(service.context(one) for one in engines),
        "engines": [{"method": one.method, "policy": one.policy, "task": one.task} for one in engines],
    }
