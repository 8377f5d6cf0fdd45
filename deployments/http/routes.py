"""Routes of the HTTP API: OpenAI's paths, and a few of the service's own."""

# FastAPI evaluates annotations. Those of the routes name locals of `make_api`, so they must not be strings.

import uuid
from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import Depends, FastAPI, Request, Security
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, PlainTextResponse, Response

from deployments.engines.chat_call import prepare_chat
from deployments.engines.client import EngineClient
from deployments.engines.vllm_metrics import unfinished_requests
from deployments.http.access_log import AccessLog, LogEntry, LogSink
from deployments.http.answering import answer
from deployments.http.auth import ApiKeys
from deployments.http.body_limit import BodyLimit
from deployments.http.cors import EXPOSED
from deployments.http.http_methods import HeadAndOptions
from deployments.http.item_routes import add_item_routes
from deployments.http.openapi import (
    BEARER,
    CHAT_ANSWERS,
    COMPLETION_ANSWERS,
    ERRORS,
    UNSERVED,
    DetokenizedText,
    Health,
    Load,
    ModelCard,
    ModelList,
    Readiness,
    ServedEngine,
    TokenIds,
    Version,
    make_documented_app,
)
from deployments.protocol.anthropic_errors import AnthropicErrors
from deployments.protocol.chat_turns import Chat
from deployments.protocol.errors import ApiError, add_error_handlers, invalid_value
from deployments.protocol.responses import ChatResponseBuilder, CompletionOptions, CompletionResponseBuilder
from deployments.protocol.schema import (
    COMPLETION_TOKENS,
    ChatRequest,
    CompletionRequest,
)
from deployments.protocol.tokenize_schema import DetokenizeRequest, TokenizeRequest
from entmtp import __version__


def make_api(
    client: EngineClient,
    keys: ApiKeys,
    ready: Callable[[], Awaitable[dict[str, bool]]],
    metrics: Callable[[], Awaitable[str]],
    log: LogSink,
    created: int = 0,
) -> FastAPI:
    """Make the FastAPI application.

    Args:
        ready: returns, for each engine, whether a replica of it runs.
        metrics: returns the service's metrics in Prometheus' text format.
        log: destination of the access log.
        created: time at which the service was deployed, in seconds since 1970.
    """
    api = make_documented_app()
    _add_middlewares(api, client, log)

    async def owner(request: Request, _: Annotated[object, Security(BEARER)]) -> str:
        entry: LogEntry = request.state.entry
        entry.key = keys.owner(request.headers.get("authorization"), request.headers.get("x-api-key"))
        return entry.key

    Owner = Annotated[str, Depends(owner)]  # noqa: N806  a type

    @api.post("/v1/chat/completions", tags=["text"], responses=CHAT_ANSWERS)
    async def chat(body: ChatRequest, request: Request, key: Owner) -> Response:
        """Answer the last message of a chat."""
        entry: LogEntry = request.state.entry
        entry.set_body(body, client.catalogue.models)
        call = await prepare_chat(client, entry.id, key, body)
        builder = ChatResponseBuilder(
            f"chatcmpl-{body.request_id or uuid.uuid4().hex}",
            body.model,
            client.detokenizer(call.engine, body),
            call.requests,
            client.fingerprint(call.engine),
            body.prompt_logprobs,
            bool(body.return_token_ids),
            call.answer_format,
        )
        return await answer(client, body, call.engine, builder, request)

    @api.post("/v1/completions", tags=["text"], responses=COMPLETION_ANSWERS)
    async def completions(body: CompletionRequest, request: Request, key: Owner) -> Response:
        """Continue a text, or several."""
        entry: LogEntry = request.state.entry
        entry.set_body(body, client.catalogue.models)
        engine = client.catalogue.find(body.model, body.speculation)
        prompts = await client.encode_prompts(engine, body)
        requests = await client.prepare(entry.id, key, engine, body, prompts, COMPLETION_TOKENS)
        options = CompletionOptions(
            prompt_logprobs=body.prompt_logprobs,
            return_token_ids=bool(body.return_token_ids),
            echo=client.echo(engine, body, prompts) if body.echo else None,
            best=(body.n or 1) if body.selects else None,
            hides_logprobs=body.logprobs is None,
        )
        builder = CompletionResponseBuilder(
            f"cmpl-{body.request_id or uuid.uuid4().hex}",
            body.model,
            client.detokenizer(engine, body),
            requests,
            client.fingerprint(engine),
            options,
        )
        return await answer(client, body, engine, builder, request)

    add_item_routes(api, client, owner)

    @api.post("/tokenize", tags=["text"], responses=ERRORS)
    async def tokenize(body: TokenizeRequest, key: Owner) -> TokenIds:
        """Show the token ids of a prompt, or of a chat as the model's template writes it."""
        engine = client.catalogue.find(body.model, None)
        if (body.prompt is None) == (body.messages is None):
            raise invalid_value("prompt: give either prompt or messages", "prompt")
        if body.messages is not None:
            tokens = (await client.encode_chat(engine, Chat.to_tokenize(body))).tokens
        else:
            tokens = await client.encode(engine, body.prompt or "")
        return TokenIds(tokens=tokens, count=len(tokens), max_model_len=client.context(engine))

    @api.post("/detokenize", tags=["text"], responses=ERRORS)
    async def detokenize(body: DetokenizeRequest, key: Owner) -> DetokenizedText:
        """Show the text of token ids, special tokens included."""
        engine = client.catalogue.find(body.model, None)
        return DetokenizedText(prompt=await client.decode(engine, body.tokens))

    @api.get("/v1/models", tags=["models"], responses=ERRORS)
    async def models(key: Owner) -> ModelList:
        """List the served models."""
        return ModelList(data=[_model(client, name, created) for name in client.catalogue.models])

    @api.get("/v1/models/{name:path}", tags=["models"], responses=ERRORS)
    async def model(name: str, key: Owner) -> ModelCard:
        """Describe one model."""
        client.catalogue.find(name, None)
        return _model(client, name, created)

    @api.get("/version", tags=["operation"], responses=ERRORS)
    async def version(key: Owner) -> Version:
        """Say which release serves."""
        return Version(version=__version__)

    @api.get("/load", tags=["operation"], responses=ERRORS)
    async def load(key: Owner) -> Load:
        """Count the requests that run or wait, in all engines; the number is up to some seconds old."""
        return Load(server_load=unfinished_requests(await metrics()))

    @api.get("/ping", tags=["operation"])
    @api.post("/ping", tags=["operation"], include_in_schema=False)
    async def ping() -> Health:
        """Say that this ingress answers, as SageMaker asks."""
        return Health()

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

    for path, reason in UNSERVED.items():
        _add_unserved(api, path, reason)
    return api


def _add_unserved(api: FastAPI, path: str, reason: str) -> None:
    """Add a path of OpenAI's or vLLM's API that this service does not have, so that its error says why."""

    @api.post(path, include_in_schema=False)
    async def refuse() -> None:
        raise ApiError(404, f"POST {path}: {reason}", code="unsupported_endpoint")


def _add_middlewares(api: FastAPI, client: EngineClient, log: LogSink) -> None:
    """Add the middlewares; a request passes the last one added first."""
    add_error_handlers(api)
    args = client.args
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
    api.add_middleware(AccessLog, log=log, tracing=client.tracing)
    api.add_middleware(AnthropicErrors)  # after the log, which reads OpenAI's errors


def _model(client: EngineClient, name: str, created: int) -> ModelCard:
    engines = client.catalogue.models[name]
    return ModelCard(
        id=name,
        created=created,
        max_model_len=max(client.context(one) for one in engines),
        engines=[ServedEngine(method=one.method, policy=one.policy, task=one.task) for one in engines],
    )
