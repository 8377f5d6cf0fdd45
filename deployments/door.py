"""What stands in Serve's HTTP proxy: requests outlive their ingress, and too many are refused for next to nothing.

Serve's proxy cuts the connection when an ingress dies. Here the request is sent again if no answer has begun, and else
an event stream ends with an error event. And when an engine has refused a request for being full, most others of the
same kind are refused here for a moment, before they cost what those whose answers are being written would pay for. Ray
reads where this is from the environment of the nodes:

    RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=deployments.door.middlewares
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from ray.util.metrics import Counter
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.errors import FULL_HEADER, ApiError, full_error
from deployments.metrics import refusals

_ATTEMPTS = 4
_PAUSE_SECONDS = 0.5
_REPLAYED_BYTES = 8_000_000
"""A body beyond this is not kept, and its request not sent again."""

_FULL_SECONDS, _PROBE_SECONDS = 1.0, 0.25
"""So long an engine that was full counts as full, and so often one request may find out whether it still is."""

_ID_HEADER = "x-request-id"

_BEGINNING_SECONDS = 1.0
"""So long the door waits for a body that it could refuse by; the ingress has a deadline of its own."""


class Kind(NamedTuple):
    """Of requests that the same engine serves."""

    path: str
    model: str
    speculation: str


@dataclass
class _Full:
    """An engine that has just refused a request; moments are of ``time.monotonic()``."""

    until: float
    next_probe: float
    retry_after: int


def middlewares() -> list[Middleware]:
    """What Ray Serve's callback asks for."""
    return [Middleware(Door)]


class Door:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._full: dict[Kind, _Full] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request, response = _Request(receive), _Response(send, _request_id(scope))
        if self._full and (full := self._refuses(kind_of(scope["path"], await request.beginning()))):
            await response.refuse(full_error(full.retry_after))
            return
        for attempt in range(_ATTEMPTS):
            await self._app(dict(scope), request.again(), response)
            if response.retry_after:
                self._remember(kind_of(scope["path"], await request.beginning()), response.retry_after)
            if response.ended or request.gone:
                return
            if response.started or not request.whole:
                break
            await asyncio.sleep(_PAUSE_SECONDS * attempt)
        await response.break_off()

    @cached_property
    def _refusals(self) -> Counter:
        return refusals()

    def _refuses(self, kind: Kind | None) -> _Full | None:
        """Why a request may not even try; None: it may."""
        now = time.monotonic()
        self._full = {known: each for known, each in self._full.items() if each.until > now}
        full = None if kind is None else self._full.get(kind)
        if kind is None or full is None:
            return None
        if now >= full.next_probe:
            full.next_probe = now + _PROBE_SECONDS
            return None
        self._refusals.inc(tags={"model": kind.model})
        return full

    def _remember(self, kind: Kind | None, retry_after: int) -> None:
        """The engine of such requests has refused one."""
        if kind is not None:
            now = time.monotonic()
            known = self._full.get(kind)
            probe = now + _PROBE_SECONDS if known is None else known.next_probe
            self._full[kind] = _Full(now + _FULL_SECONDS, probe, retry_after)
            self._refusals.inc(tags={"model": kind.model})


def kind_of(path: str, body: bytes) -> Kind | None:
    """What a request's engine is known by; None where that can't be told."""
    try:
        asked = json.loads(body)
        return Kind(path, str(asked["model"]), json.dumps(asked.get("speculation"), sort_keys=True))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _request_id(scope: Scope) -> str:
    """The client's, or one that the request has from here on, with whichever ingress it is tried."""
    headers = MutableHeaders(scope=scope)
    return headers.setdefault(_ID_HEADER, uuid.uuid4().hex)


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

    async def beginning(self) -> bytes:
        """The body, if all of it comes at once, as nearly every one does; else nothing."""
        if not self._kept and not self.gone:
            try:
                async with asyncio.timeout(_BEGINNING_SECONDS):
                    await self._next()
            except TimeoutError:
                return b""
        first = self._kept[0] if self._kept else {"more_body": True}
        return b"" if first.get("more_body", False) else bytes(first.get("body", b""))

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
    """Goes to the client, and knows how far it has come.

    Attributes:
        retry_after: what a refusal for a full engine advises, in seconds; 0 with any other response.
    """

    def __init__(self, send: Send, request_id: str) -> None:
        self.started = self.ended = False
        self.retry_after = 0
        self._send, self._request_id = send, request_id
        self._events = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            headers = {name.lower(): value for name, value in message["headers"]}
            self._events = headers.get(b"content-type", b"").startswith(b"text/event-stream")
            if FULL_HEADER in headers:
                self.retry_after = int(headers[b"retry-after"])
        elif message["type"] == "http.response.body":
            self.ended = not message.get("more_body", False)
        await self._send(message)

    async def break_off(self) -> None:
        """Says that there will be no more; a body that is no event stream can only be cut."""
        error = ApiError(
            503, "service: the ingress that served this request died; send it again", headers={"Retry-After": "1"}
        )
        if not self.started:
            await self.refuse(error)
        elif self._events:
            await self._send({"type": "http.response.body", "body": f"data: {json.dumps(error.body())}\n\n".encode()})

    async def refuse(self, error: ApiError) -> None:
        """The whole response."""
        given = {"Content-Type": "application/json", _ID_HEADER: self._request_id} | error.headers
        headers = [(name.lower().encode(), value.encode()) for name, value in given.items()]
        await self._send({"type": "http.response.start", "status": error.status, "headers": headers})
        await self._send({"type": "http.response.body", "body": json.dumps(error.body()).encode()})
