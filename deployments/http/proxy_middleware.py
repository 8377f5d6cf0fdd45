"""What stands in Serve's HTTP proxy: requests outlive their ingress, and too many are refused for next to nothing.

Serve's proxy cuts the connection when an ingress dies. Here the request is sent again if no answer has begun, and else
an event stream ends with an error event. It is sent again once, and the next ingress hears so: whatever ends processes
ends two at most, replicas included (:mod:`deployments.engines.failover`).

When an engine has refused a request for being full, most others for the same engine are refused here for a moment,
before they cost what those whose answers are being written would pay for. So are all when the service stops, and those
that Serve itself would refuse in words that no client's library reads. What no ingress has logged is logged here.
Ray reads where this is from the environment of the nodes:

    RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=deployments.http.proxy_middleware.middlewares
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from ray.util.metrics import Counter
from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.addresses import ONGOING_PATH
from deployments.announcement import Announced
from deployments.engines.deaths import GIVEN_UP, NO_RETRY, RETRIED_HEADER, RETRIES
from deployments.engines.metrics import refusals
from deployments.http.cors import cors_headers
from deployments.log_file import LOGGED_HEADER, LONGEST_PATH, ProxyLog
from deployments.protocol.errors import FULL_HEADER, ApiError, full_error
from deployments.protocol.request_ids import ID_HEADER, request_id
from deployments.stop_file import stopping

_PATHS = "/v1/chat/completions", "/v1/completions"
"""Paths of the requests that engines answer, after the application's prefix."""

_SERVES_OWN = "/-/"
"""Paths that Serve's proxy answers itself: its health and its routes."""

_REPLAYED_BYTES = 8_000_000
"""A body beyond this is not kept, and its request not sent again."""

_FULL_SECONDS, _PROBE_SECONDS = 1.0, 0.25
"""So long an engine that was full counts as full, and so often one request may find out whether it still is."""

_BEGINNING_SECONDS = 1.0
"""So long the door waits for a body that it could refuse by; the ingress has a deadline of its own."""

_AGAIN = {"Retry-After": "1"}
_DIED = ApiError(503, "service: the ingress that served this request died; send it again", headers=_AGAIN)
_UNSERVED = ApiError(503, "service: it is starting or stopping; try again", headers=_AGAIN)
_OF_SERVE = {404, 503}
"""Statuses with which Serve refuses, in plain text, what it has no application or no ingress for."""


class Kind(NamedTuple):
    """Fields that choose the engine of a request, and no others: varying the rest changes no refusal."""

    prefix: str
    model: str
    method: str | None
    policy: str | None
    task: str | None


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
        self._announced = Announced()
        self._log = ProxyLog(self._announced)
        self._ongoing = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif scope["path"] == ONGOING_PATH:
            await JSONResponse({"requests": self._ongoing})(scope, receive, send)
        else:
            counted = _is_for_text(scope)
            self._ongoing += counted
            try:
                await self._answer_and_log(scope, receive, send)
            finally:
                self._ongoing -= counted

    async def _answer_and_log(self, scope: Scope, receive: Receive, send: Send) -> None:
        came, id = time.perf_counter(), request_id(scope)
        request, response = _Request(receive), _Response(send, id, _is_for_text(scope))
        try:
            await self._answer(scope, request, response)
        finally:
            if response.unlogged and not scope["path"].startswith(_SERVES_OWN):
                kind = kind_of(scope["path"], request.known())
                self._log.write(
                    {
                        "request_id": id,
                        "status": response.status,
                        "method": scope["method"],
                        "path": scope["path"][:LONGEST_PATH],
                        "model": None if kind not in self._full else kind.model,  # other names may be any text
                        "seconds": round(time.perf_counter() - came, 4),
                        "error": response.error,
                    }
                )

    async def _answer(self, scope: Scope, request: _Request, response: _Response) -> None:
        if stopping() and _is_for_text(scope) and scope["method"] == "POST":
            await self._refuse(scope, response, _UNSERVED)
            return
        if self._full and (full := self._refuses(kind_of(scope["path"], await request.beginning()))):
            await self._refuse(scope, response, full_error(full.retry_after))
            return
        for attempt in range(1 + RETRIES):
            await self._app(_for_attempt(scope, attempt), request.again(), response)
            if response.retry_after:
                self._remember(kind_of(scope["path"], await request.beginning()), response.retry_after)
            if response.unserved:
                await self._refuse(scope, response, _UNSERVED)
                return
            if response.ended or request.gone:
                return
            if response.started:
                await response.cut(_DIED)
                return
            if not request.whole:
                await self._refuse(scope, response, _DIED)
                return
        await self._refuse(scope, response, ApiError(500, GIVEN_UP, headers=NO_RETRY))

    async def _refuse(self, scope: Scope, response: _Response, error: ApiError) -> None:
        """Answers as the ingress would, so that pages of allowed origins can read it too."""
        known = self._announced.latest()
        await response.refuse(error, cors_headers(scope, known.origins) if known else {})

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


def _is_for_text(scope: Scope) -> bool:
    return str(scope["path"]).endswith(_PATHS)


def kind_of(path: str, body: bytes) -> Kind | None:
    """The engine's marks in a request; None where it goes to no engine, or is not well-formed."""
    suffix = next((known for known in _PATHS if path.endswith(known)), None)
    if suffix is None:
        return None
    try:
        asked = json.loads(body)
        wanted = asked.get("speculation") or {}
        kind = Kind(path.removesuffix(suffix), asked["model"], *(wanted.get(name) for name in Kind._fields[2:]))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return kind if all(mark is None or isinstance(mark, str) for mark in kind) else None


def _for_attempt(scope: Scope, attempt: int) -> Scope:
    """The scope of a request that goes to an ingress for the first or a further time."""
    headers = [pair for pair in scope["headers"] if pair[0].lower() != RETRIED_HEADER]
    return {**scope, "headers": [*headers, (RETRIED_HEADER, b"1")] if attempt else headers}


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
        return self.known()

    def known(self) -> bytes:
        """The body, if all of it has come and in one piece; else nothing."""
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
        status: that it began with, or that it should have had.
        error: of a response that was made here.
        retry_after: what a refusal for a full engine advises, in seconds; 0 with any other response.
        unlogged: only the proxy knows of it.
        unserved: it was Serve's own refusal of a request ``for_text``, and was kept back.
    """

    def __init__(self, send: Send, request_id: str, for_text: bool) -> None:
        self.started = self.ended = self.unlogged = self.unserved = False
        self.status = self.retry_after = 0
        self.error: dict[str, Any] | None = None
        self._send, self._request_id, self._for_text = send, request_id, for_text
        self._events = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started, self.status = True, message["status"]
            headers = {name.lower(): value for name, value in message["headers"]}
            self._events = headers.get(b"content-type", b"").startswith(b"text/event-stream")
            if FULL_HEADER in headers:
                self.retry_after = int(headers[b"retry-after"])
            self.unlogged = LOGGED_HEADER not in headers
            self.unserved = self.unlogged and self._for_text and self.status in _OF_SERVE
            told = [pair for pair in message["headers"] if pair[0].lower() != LOGGED_HEADER]
            message = {**message, "headers": told}
        elif message["type"] == "http.response.body":
            self.ended = not message.get("more_body", False)
        if not self.unserved:
            await self._send(message)

    async def cut(self, error: ApiError) -> None:
        """Says why there will be no more; a body that is no event stream can only be cut."""
        self._note(error)
        if self._events:
            await self._send({"type": "http.response.body", "body": f"data: {json.dumps(error.body())}\n\n".encode()})

    async def refuse(self, error: ApiError, more_headers: Mapping[str, str]) -> None:
        """The whole response."""
        self._note(error)
        given = {"Content-Type": "application/json", ID_HEADER: self._request_id, **error.headers, **more_headers}
        headers = [(name.lower().encode(), value.encode()) for name, value in given.items()]
        await self._send({"type": "http.response.start", "status": error.status, "headers": headers})
        await self._send({"type": "http.response.body", "body": json.dumps(error.body()).encode()})

    def _note(self, error: ApiError) -> None:
        self.unlogged = True
        self.status, self.error = error.status, error.body()["error"]
