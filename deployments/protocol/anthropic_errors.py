"""Errors in the format of Anthropic's API, for the paths under ``/v1/messages``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.protocol.request_ids import request_id

_PATHS = "/v1/messages", "/v1/messages/count_tokens"
_TYPES = {"unavailable_error": "overloaded_error", "server_error": "api_error"}
"""Anthropic's names of this service's types of errors, where they differ."""


def speaks_anthropic(path: str) -> bool:
    """Whether errors of a path are in Anthropic's format; the application may have a prefix."""
    return path.endswith(_PATHS)


def anthropic_body(body: Mapping[str, Any], id: str | None = None) -> dict[str, Any]:
    """Anthropic's body of an error, from OpenAI's."""
    error = body["error"]
    details = {"type": _TYPES.get(error["type"], error["type"]), "message": error["message"]}
    return {"type": "error", "error": details, "request_id": id}


class AnthropicErrors:
    """ASGI middleware that writes all errors of Anthropic's paths in its format."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and speaks_anthropic(scope["path"]):
            send = _Translated(send, request_id(scope))
        await self._app(scope, receive, send)


class _Translated:
    """A response whose body is translated if it is an error; such bodies are short and come at once."""

    def __init__(self, send: Send, id: str) -> None:
        self._send, self._id = send, id
        self._start: Message | None = None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] >= 400:
            self._start = message
        elif self._start is not None:
            start, self._start = self._start, None
            body = _translated(message.get("body", b""), self._id)
            headers = [pair for pair in start["headers"] if pair[0].lower() != b"content-length"]
            await self._send({**start, "headers": [*headers, (b"content-length", str(len(body)).encode())]})
            await self._send({**message, "body": body})
        else:
            await self._send(message)


def _translated(body: bytes, id: str) -> bytes:
    try:
        return json.dumps(anthropic_body(json.loads(body), id)).encode()
    except (ValueError, KeyError, TypeError):
        return body
