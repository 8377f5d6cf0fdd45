"""What stands in Serve's HTTP proxy, so that a request outlives the ingress that serves it.

Serve's proxy cuts the connection when an ingress dies. Here the request is sent again if no answer has begun, and else
an event stream ends with an error event. Ray reads where this is from the environment of the nodes:

    RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=deployments.door.middlewares
"""

from __future__ import annotations

import asyncio
import json

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.errors import ApiError

_ATTEMPTS = 4
_PAUSE_SECONDS = 0.5
_REPLAYED_BYTES = 8_000_000
"""A body beyond this is not kept, and its request not sent again."""


def middlewares() -> list[Middleware]:
    """What Ray Serve's callback asks for."""
    return [Middleware(Door)]


class Door:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request, response = _Request(receive), _Response(send)
        for attempt in range(_ATTEMPTS):
            await self._app(dict(scope), request.again(), response)
            if response.ended or request.gone:
                return
            if response.started or not request.whole:
                break
            await asyncio.sleep(_PAUSE_SECONDS * attempt)
        await response.break_off()


class _Request:
    """Can be read again.

    Attributes:
        gone: the client is.
        whole: all that was read is still known.
    """

    def __init__(self, receive: Receive) -> None:
        self.gone, self.whole = False, True
        self._receive = receive
        self._kept: list[Message] = []
        self._size = 0

    def again(self) -> Receive:
        """From its beginning."""
        kept = iter(list(self._kept))

        async def receive() -> Message:
            message = next(kept, None)
            return await self._next() if message is None else message

        return receive

    async def _next(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self.gone = True
            return message
        self._size += len(message.get("body", b""))
        self.whole = self._size <= _REPLAYED_BYTES
        if self.whole:
            self._kept.append(message)
        return message


class _Response:
    """Goes to the client, and knows how far it has come."""

    def __init__(self, send: Send) -> None:
        self.started = self.ended = False
        self._send = send
        self._events = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            kind = next((value for name, value in message["headers"] if name.lower() == b"content-type"), b"")
            self._events = kind.startswith(b"text/event-stream")
        elif message["type"] == "http.response.body":
            self.ended = not message.get("more_body", False)
        await self._send(message)

    async def break_off(self) -> None:
        """Says that there will be no more; a body that is no event stream can only be cut."""
        error = ApiError(503, "service: the ingress that served this request died; send it again")
        if not self.started:
            body = json.dumps(error.body()).encode()
            headers = [(b"content-type", b"application/json"), (b"retry-after", b"1")]
            await self._send({"type": "http.response.start", "status": error.status, "headers": headers})
            await self._send({"type": "http.response.body", "body": body})
        elif self._events:
            await self._send({"type": "http.response.body", "body": f"data: {json.dumps(error.body())}\n\n".encode()})
