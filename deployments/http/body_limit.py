"""Limits of a request's body: it is read completely before anything else, within a maximum size and time."""

from __future__ import annotations

import asyncio

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.protocol.errors import ApiError


class BodyLimit:
    """ASGI middleware that refuses bodies above ``size`` bytes, or slower than ``seconds``."""

    def __init__(self, app: ASGIApp, *, size: int, seconds: float) -> None:
        self._app, self._size, self._seconds = app, size, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] not in {"POST", "PUT", "PATCH"}:
            await self._app(scope, receive, send)
            return
        try:
            self._check_size(_content_length(scope))
            async with asyncio.timeout(self._seconds):
                body = await self._read(receive)
        except TimeoutError:
            error = ApiError(408, f"body: it did not come within {self._seconds:g} s; send it faster")
            await error.response()(scope, receive, send)
            return
        except ApiError as error:
            await error.response()(scope, receive, send)
            return
        if body is not None:
            await self._app(scope, _ReplayedBody(body, receive), send)

    async def _read(self, receive: Receive) -> bytes | None:
        """Read the body; None if the client disconnected."""
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            self._check_size(len(body))
            if not message.get("more_body", False):
                return bytes(body)

    def _check_size(self, size: int) -> None:
        if size > self._size:
            raise ApiError(413, f"body: it is larger than {self._size} bytes; send less")


def _content_length(scope: Scope) -> int:
    """Size in the header Content-Length; 0 without one."""
    length = Headers(scope=scope).get("content-length", "")
    return int(length[:20]) if length.isascii() and length.isdigit() else 0


class _ReplayedBody:
    """ASGI receive function that returns the body first, and then the client's further messages."""

    def __init__(self, body: bytes, receive: Receive) -> None:
        self._body: bytes | None = body
        self._receive = receive

    async def __call__(self) -> Message:
        if self._body is None:
            return await self._receive()
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}
