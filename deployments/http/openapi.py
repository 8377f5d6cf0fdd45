"""Documentation of the API: the schemas of /openapi.json, and /docs, which works offline."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import FastAPI
from fastapi.security import HTTPBearer
from fastapi_offline import FastAPIOffline
from openai.types import Completion
from openai.types.chat import ChatCompletion
from pydantic import BaseModel, Field

from deployments.protocol.speculative_metrics import RequestMetrics
from entmtp import __version__

_ABOUT = """Text from a large language model, faster, token for token the same.

The paths under `/v1` are OpenAI's, and its clients work with them; `/v1/messages` is Anthropic's. Parameters that
OpenAI doesn't have go by vLLM's names. `speculation` is an extension of this service, in requests and in `usage`;
`metrics.speculative_decoding` of an answer has vLLM's names for the same."""
_METRICS = "how one answer's steps went; null for several answers, and where nothing was drafted"

BEARER = HTTPBearer(
    auto_error=False, scheme_name="API key", description="Needed where the service has keys; `sk-…`, as it was given"
)


class ErrorDetails(BaseModel):
    """The mistake, and how to put it right."""

    message: str
    type: str
    param: str | None = Field(description="the field of the request that is at fault")
    code: str | None = Field(description="the kind of mistake, for programs")


class ErrorBody(BaseModel):
    """The body of every answer that is an error, and of an error event in a stream."""

    error: ErrorDetails


class ServedEngine(BaseModel):
    """One way in which a model is served; `speculation` of a request chooses among them."""

    method: str
    policy: str
    task: str


class ModelCard(BaseModel):
    """A model that requests can name."""

    id: str
    object: Literal["model"] = "model"
    created: int = Field(description="when the service was deployed, in seconds since 1970")
    owned_by: str = "entmtp"
    max_model_len: int = Field(description="tokens of prompt and answer together")
    engines: list[ServedEngine] = Field(description="the first is the default")


class ModelList(BaseModel):
    """All models."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class TokenIds(BaseModel):
    """A tokenized prompt."""

    tokens: list[int]
    count: int
    max_model_len: int = Field(description="tokens of prompt and answer together")


class DetokenizedText(BaseModel):
    """The text of token ids."""

    prompt: str


class Version(BaseModel):
    """The release that serves."""

    version: str


class Load(BaseModel):
    """The amount of work."""

    server_load: int = Field(description="requests that run or wait, in all engines")


class Health(BaseModel):
    """A sign that this ingress answers."""

    status: Literal["ok"] = "ok"


class Readiness(BaseModel):
    """Whether each engine has a replica that runs."""

    engines: dict[str, bool]


_NO_AUDIO = "this service's models read and write text alone; no audio is read or written here"
UNSERVED = {
    "/v1/embeddings": "this service generates text and makes no embeddings; ask a server of an embedding model",
    "/pooling": "this service generates text and makes no embeddings; ask a server of an embedding model",
    "/v1/rerank": "this service generates text and ranks none; ask a server of a reranking model",
    "/rerank": "this service generates text and ranks none; ask a server of a reranking model",
    "/v1/audio/speech": _NO_AUDIO,
    "/v1/audio/transcriptions": _NO_AUDIO,
    "/v1/audio/translations": _NO_AUDIO,
    "/v1/images/generations": "this service's models write text alone, and no images",
    "/v1/moderations": "this service judges no text; ask a server of a moderation model",
}
"""Paths that clients may try, and why this service has none of them."""

ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"description": about, "model": ErrorBody}
    for status, about in {
        400: "a field is wrong; the body names it",
        401: "no key, or not one of this service's",
        404: "no such model",
        408: "the body came too slowly",
        413: "the body is too large",
        429: "try again after the header Retry-After",
        500: "the engine failed on this text",
        503: "no engine can be reached",
        504: "the request's own deadline has passed, or the service's",
    }.items()
}


def answers(model: type[BaseModel], about: str) -> dict[int | str, dict[str, Any]]:
    """Responses of a route that answers with ``model``, or with a stream of events."""
    event: dict[str, Any] = {"type": "object", "required": ["data"], "properties": {"data": {"type": "string"}}}
    event["description"] = (
        "an event where `stream` is true; its data is a chunk in JSON, an error, or at the end [DONE]"
    )
    events = {"schema": event}
    return {200: {"description": about, "model": model, "content": {"text/event-stream": events}}, **ERRORS}


class ChatAnswer(ChatCompletion):
    """OpenAI's answer to a chat, with vLLM's `metrics`."""

    metrics: RequestMetrics | None = Field(None, description=_METRICS)


class CompletionAnswer(Completion):
    """OpenAI's continuation of texts, with vLLM's `metrics`."""

    metrics: RequestMetrics | None = Field(None, description=_METRICS)


CHAT_ANSWERS = answers(ChatAnswer, "the answers, with their usage")
COMPLETION_ANSWERS = answers(CompletionAnswer, "the continuations, with their usage")


def make_documented_app() -> FastAPI:
    """Make an application without routes of its own whose documentation works offline."""
    tags = [
        {"name": "text", "description": "what a model writes"},
        {"name": "models", "description": "what is served"},
        {"name": "operation", "description": "probes and metrics"},
    ]
    return FastAPIOffline(
        title="EntMTP",
        version=__version__,
        description=_ABOUT,
        openapi_tags=tags,
        docs_url="/docs",
        redoc_url=None,
        # By default the page sends the document's URL of a public service to a validator on another host.
        swagger_ui_parameters={"validatorUrl": None},
    )
