"""Middleware in Serve's HTTP proxy: retries requests whose ingress died, and refuses requests for full engines.

- Retry. Serve's proxy cuts the connection when an ingress dies. Here the request is sent again if no response has
  started; otherwise an event stream ends with an error event. It is sent again once, and a header tells the next
  ingress. A fatal request thus kills at most two processes, replicas included (:mod:`deployments.engines.failover`).
- Refusal. After an engine has refused a request because it is full, most other requests for the same engine are refused
  here for a moment. They would take CPU time from the running requests. While the service stops, all requests for text
  are refused.
- Errors. Serve's own plain-text refusals are replaced by errors in OpenAI's format.
- Log. Requests that no ingress has logged are logged here.

Ray finds this middleware through an environment variable of the nodes:

    RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=deployments.http.proxy_middleware.middlewares
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from ray.util.metrics import Counter
from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.addresses import ONGOING_PATH
from deployments.engines.deaths import GIVEN_UP, NO_RETRY, RETRIED_HEADER, RETRIES
from deployments.engines.metric_definition import refused_counter
from deployments.http.cors import cors_headers
from deployments.log_file import LOGGED_HEADER, LONGEST_PATH, ProxyLog
from deployments.protocol.anthropic_errors import anthropic_body, speaks_anthropic
from deployments.protocol.errors import FULL_HEADER, ApiError, engine_full_error
from deployments.protocol.request_ids import ID_HEADER, request_id
from deployments.proxy_settings import ProxySettingsReader
from deployments.stop_file import stopping

_PATHS = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"
"""Paths of requests for text, after the application's prefix."""

_SERVES_OWN = "/-/"
"""Prefix of the paths that Serve's proxy answers itself: health and routes."""

_REPLAYED_BYTES = 8_000_000
"""Maximum size of a stored body; a request with a larger body is not retried."""

_FULL_SECONDS, _PROBE_SECONDS = 1.0, 0.25
"""Time for which an engine counts as full, and interval at which one request may test whether it still is."""

_BEGINNING_SECONDS = 1.0
"""Maximum wait for the body of a request that may be refused here; the ingress has a deadline of its own."""

_AGAIN = {"Retry-After": "1"}
_DIED = ApiError(503, "service: the ingress that served this request died; send it again", headers=_AGAIN)
_UNSERVED = ApiError(503, "service: it is starting or stopping; try again", headers=_AGAIN)
_OF_SERVE = {404, 503}
"""Statuses of Serve's own refusals, in plain text, when there is no application or no ingress."""


class EngineKey(NamedTuple):
    """Fields of a request that select its engine. Requests with equal keys are refused together."""

    prefix: str
    model: str
    method: str | None
    policy: str | None
    task: str | None


@dataclass
class _FullEngine:
    """An engine that has just refused a request; times are of ``time.monotonic()``."""

    until: float
    next_probe: float
    retry_after: int


def middlewares() -> list[Middleware]:
    """Middlewares for Ray Serve's proxy callback."""
    return [Middleware(ProxyMiddleware)]


class ProxyMiddleware:
    """ASGI middleware that serves every request of one proxy."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._full: dict[EngineKey, _FullEngine] = {}
        self._settings = ProxySettingsReader()
        self._log = ProxyLog(self._settings)
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
        arrived, id = time.perf_counter(), request_id(scope)
        request, response = _ReplayableRequest(receive), _TrackedResponse(send, id, str(scope["path"]))
        try:
            await self._answer(scope, request, response)
        finally:
            if response.unlogged and not scope["path"].startswith(_SERVES_OWN):
                key = engine_key(scope["path"], request.complete_body())
                self._log.write(
                    {
                        "request_id": id,
                        "status": response.status,
                        "method": scope["method"],
                        "path": scope["path"][:LONGEST_PATH],
                        "model": None if key not in self._full else key.model,  # other names may be any text
                        "seconds": round(time.perf_counter() - arrived, 4),
                        "error": response.error,
                    }
                )

    async def _answer(self, scope: Scope, request: _ReplayableRequest, response: _TrackedResponse) -> None:
        if stopping() and _is_for_text(scope) and scope["method"] == "POST":
            await self._refuse(scope, response, _UNSERVED)
            return
        if self._full and (full := self._full_engine(engine_key(scope["path"], await request.first_body()))):
            await self._refuse(scope, response, engine_full_error(full.retry_after))
            return
        response.on_full = lambda seconds: self._mark_full(engine_key(scope["path"], request.complete_body()), seconds)
        for attempt in range(1 + RETRIES):
            await self._app(_for_attempt(scope, attempt), request.replay(), response)
            if response.unserved:
                await self._refuse(scope, response, _UNSERVED)
                return
            if response.ended or request.disconnected:
                return
            if response.started:
                await response.abort(_DIED)
                return
            if not request.complete:
                await self._refuse(scope, response, _DIED)
                return
        await self._refuse(scope, response, ApiError(500, GIVEN_UP, headers=NO_RETRY))

    async def _refuse(self, scope: Scope, response: _TrackedResponse, error: ApiError) -> None:
        """Answer with ``error``, with CORS headers as from the ingress."""
        settings = self._settings.latest()
        await response.refuse(error, cors_headers(scope, settings.origins) if settings else {})

    @cached_property
    def _refused(self) -> Counter:
        return refused_counter()

    def _full_engine(self, key: EngineKey | None) -> _FullEngine | None:
        """Full engine for which a request with ``key`` is refused; None if the request may go to an ingress."""
        now = time.monotonic()
        self._full = {known: each for known, each in self._full.items() if each.until > now}
        full = None if key is None else self._full.get(key)
        if key is None or full is None:
            return None
        if now >= full.next_probe:
            full.next_probe = now + _PROBE_SECONDS
            return None
        self._refused.inc(tags={"model": key.model})
        return full

    def _mark_full(self, key: EngineKey | None, retry_after: int) -> None:
        """Store that the engine of requests with ``key`` has refused one."""
        if key is not None:
            now = time.monotonic()
            known = self._full.get(key)
            probe = now + _PROBE_SECONDS if known is None else known.next_probe
            self._full[key] = _FullEngine(now + _FULL_SECONDS, probe, retry_after)
            self._refused.inc(tags={"model": key.model})


def _is_for_text(scope: Scope) -> bool:
    return str(scope["path"]).endswith(_PATHS)


def engine_key(path: str, body: bytes) -> EngineKey | None:
    """Key of a request's engine; None if the request is not for text, or its body is not valid."""
    suffix = next((known for known in _PATHS if path.endswith(known)), None)
    if suffix is None:
        return None
    try:
        request = json.loads(body)
        speculation = request.get("speculation") or {}
        prefix, options = path.removesuffix(suffix), (speculation.get(name) for name in EngineKey._fields[2:])
        key = EngineKey(prefix, request["model"], *options)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return key if all(field is None or isinstance(field, str) for field in key) else None


def _for_attempt(scope: Scope, attempt: int) -> Scope:
    """Scope of an attempt; from the second attempt on it has the header of a retry."""
    headers = [pair for pair in scope["headers"] if pair[0].lower() != RETRIED_HEADER]
    return {**scope, "headers": [*headers, (RETRIED_HEADER, b"1")] if attempt else headers}


class _ReplayableRequest:
    """A request whose messages are stored, so that it can be sent again.

    Attributes:
        disconnected: whether the client has disconnected.
        complete: whether all messages read so far are stored.
    """

    def __init__(self, receive: Receive) -> None:
        self.disconnected, self.complete = False, True
        self._receive = receive
        self._stored: list[Message] = []
        self._size = 0

    def replay(self) -> Receive:
        """ASGI receive function that reads the request from its beginning."""
        stored = iter(list(self._stored))

        async def receive() -> Message:
            message = next(stored, None)
            return await self._next() if message is None else message

        return receive

    async def first_body(self) -> bytes:
        """Wait for the first message; returns the body if it is complete, as it nearly always is, or else nothing."""
        if not self._stored and not self.disconnected:
            try:
                async with asyncio.timeout(_BEGINNING_SECONDS):
                    await self._next()
            except TimeoutError:
                return b""
        return self.complete_body()

    def complete_body(self) -> bytes:
        """The body, if the first message has all of it; otherwise nothing."""
        first = self._stored[0] if self._stored else {"more_body": True}
        return b"" if first.get("more_body", False) else bytes(first.get("body", b""))

    async def _next(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self.disconnected = True
            return message
        self._size += len(message.get("body", b""))
        self.complete = self._size <= _REPLAYED_BYTES
        if self.complete:
            self._stored.append(message)
        return message


class _TrackedResponse:
    """A response on its way to the client, with its progress.

    Attributes:
        status: status of the response, or of the error that ends it.
        error: error of a response that was made here.
        on_full: receives the seconds of Retry-After if the engine was full, before the client knows of it.
        unlogged: whether no ingress has logged the request.
        unserved: whether this is Serve's own refusal of a request for text, which is not passed on.
    """

    def __init__(self, send: Send, request_id: str, path: str) -> None:
        self.started = self.ended = self.unlogged = self.unserved = False
        self.status = 0
        self.on_full: Callable[[int], None] = lambda seconds: None
        self.error: dict[str, Any] | None = None
        self._send, self._request_id, self._for_text = send, request_id, path.endswith(_PATHS)
        self._anthropic = speaks_anthropic(path)
        self._events = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started, self.status = True, message["status"]
            headers = {name.lower(): value for name, value in message["headers"]}
            self._events = headers.get(b"content-type", b"").startswith(b"text/event-stream")
            if FULL_HEADER in headers:
                self.on_full(int(headers[b"retry-after"]))
            self.unlogged = LOGGED_HEADER not in headers
            self.unserved = self.unlogged and self._for_text and self.status in _OF_SERVE
            passed_on = [pair for pair in message["headers"] if pair[0].lower() != LOGGED_HEADER]
            message = {**message, "headers": passed_on}
        elif message["type"] == "http.response.body":
            self.ended = not message.get("more_body", False)
        if not self.unserved:
            await self._send(message)

    async def abort(self, error: ApiError) -> None:
        """End an event stream with an error event; any other response is just cut off."""
        self._set_error(error)
        if self._events:
            name = "event: error\n" if self._anthropic else ""
            event = f"{name}data: {json.dumps(self._body(error))}\n\n"
            await self._send({"type": "http.response.body", "body": event.encode()})

    async def refuse(self, error: ApiError, more_headers: Mapping[str, str]) -> None:
        """Send ``error`` as the complete response."""
        self._set_error(error)
        given = {"Content-Type": "application/json", ID_HEADER: self._request_id, **error.headers, **more_headers}
        headers = [(name.lower().encode(), value.encode()) for name, value in given.items()]
        await self._send({"type": "http.response.start", "status": error.status, "headers": headers})
        await self._send({"type": "http.response.body", "body": json.dumps(self._body(error)).encode()})

    def _body(self, error: ApiError) -> dict[str, Any]:
        return anthropic_body(error.body(), self._request_id) if self._anthropic else error.body()

    def _set_error(self, error: ApiError) -> None:
        self.unlogged = True
        self.status, self.error = error.status, error.body()["error"]
