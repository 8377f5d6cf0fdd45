"""Access log: one line for each request, however it ends. Prompts and answers are logged only if configured."""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.engines.tracing import Tracing
from deployments.log_file import LOGGED_HEADER, LONGEST_PATH
from deployments.protocol.errors import ApiError
from deployments.protocol.messages import prompt_tokens
from deployments.protocol.request_ids import request_id
from deployments.protocol.schema import GenerationRequest
from entmtp.decoding.outputs import RequestOutput
from entmtp.decoding.request import Request

CLIENT_GONE = 499
_LONGEST_ERROR = 10_000


@dataclass(frozen=True)
class LogSink:
    """Destination of log lines.

    Attributes:
        write: writes a line.
        secret: the service's own secret; without it nobody can match hashes of `user` against a list of users.
        texts: whether prompts and answers are logged too.
    """

    write: Callable[[Mapping[str, Any]], None]
    secret: bytes
    texts: bool = False

    def pseudonym(self, user: str) -> str:
        """Hash of a user's name, the same until the service restarts."""
        return hmac.new(self.secret, user.encode("utf-8", "replace"), hashlib.sha256).hexdigest()[:16]


class LogEntry:
    """Log line of one request, filled while the request is served.

    Attributes:
        id: id of the request.
        key: name of the API key's owner, once it is known.
    """

    def __init__(self, log: LogSink, scope: Scope) -> None:
        self.id = request_id(scope)
        self.key: str | None = None
        self._log = log
        self._method, self._path = str(scope["method"]), str(scope["path"])[:LONGEST_PATH]
        self._arrived = time.perf_counter()
        self._first_token_s: float | None = None
        self._user: str | None = None
        self._model: str | None = None
        self._prompt: Any = None
        self._engine: str | None = None
        self._requests: Sequence[Request] = ()
        self._answers: Sequence[RequestOutput] = ()
        self._error: ApiError | None = None

    def set_body(self, body: GenerationRequest, served: Container[str]) -> None:
        """Add the fields of a valid body. A model is logged only if ``served``, as other names may be any text."""
        self._model = body.model if body.model in served else None
        self._user = None if body.user is None else self._log.pseudonym(body.user)
        if self._log.texts:
            self._prompt = body.model_dump(include={"messages", "prompt"})

    def set_answers(self, engine: str, requests: Sequence[Request], answers: Sequence[RequestOutput]) -> None:
        """Add the engine, its requests and their ``answers``, which are read when the line is written."""
        self._engine, self._requests, self._answers = engine, requests, answers

    def mark_token(self) -> None:
        """Note the time of the first token."""
        if self._first_token_s is None:
            self._first_token_s = time.perf_counter() - self._arrived

    def set_error(self, error: ApiError) -> None:
        """Note an error that ends a stream; it replaces the status with which the response began."""
        self._error = error

    def write(self, status: int, error: Mapping[str, Any] | None, tracing: Tracing) -> None:
        """Write the line; ``error`` is the error in the response's body."""
        if self._error is not None:
            status, error = self._error.status, self._error.body()["error"]
        seconds = time.perf_counter() - self._arrived
        line: dict[str, Any] = {
            "request_id": self.id,
            "status": status,
            "method": self._method,
            "path": self._path,
            "key": self.key,
            "user": self._user,
            "model": self._model,
            "seconds": round(seconds, 4),
            "first_token_seconds": None if self._first_token_s is None else round(self._first_token_s, 4),
        }
        if self._engine is not None:
            line |= {
                "engine": self._engine,
                "prompt_tokens": prompt_tokens(self._requests),
                "new_tokens": sum(len(one.tokens) for one in self._answers),
                "finish_reasons": [one.finish_reason for one in self._answers],
            }
        if self._model is not None:
            tracing.record(self._model, seconds, status, line)
        if error is not None:
            line["error"] = _loggable(status, error, self._log.texts)
        if self._prompt is not None:
            line |= {"prompt": self._prompt, "answers": [one.text for one in self._answers]}
        self._log.write(line)


class AccessLog:
    """ASGI middleware outside of all others; handlers find the request's entry in its state."""

    def __init__(self, app: ASGIApp, *, log: LogSink, tracing: Tracing) -> None:
        self._app, self._log, self._tracing = app, log, tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        entry, response = LogEntry(self._log, scope), _ObservedResponse(send)
        scope.setdefault("state", {})["entry"] = entry
        status: int | None = None
        try:
            await self._app(scope, receive, response)
            status = response.status if response.ended else None
        except Exception:
            status = 500
            raise
        finally:
            # Without a status the handler was cancelled or the response is incomplete: the client disconnected.
            entry.write(status or CLIENT_GONE, response.error(), self._tracing)


class _ObservedResponse:
    """Passes a response on and stores its status and the body of an error."""

    def __init__(self, send: Send) -> None:
        self.status, self.ended = 0, False
        self._send = send
        self._body = b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message = {**message, "headers": [*message.get("headers", ()), (LOGGED_HEADER, b"1")]}
        elif self.status >= 400 and len(self._body) < _LONGEST_ERROR:
            self._body += message.get("body", b"")
        await self._send(message)
        self.ended = message["type"] == "http.response.body" and not message.get("more_body", False)

    def error(self) -> dict[str, Any] | None:
        """Error in the body, if there is one."""
        try:
            error = json.loads(self._body)["error"]
        except (ValueError, KeyError, TypeError):
            return None
        return error if isinstance(error, dict) else None


def _loggable(status: int, error: Mapping[str, Any], texts: bool) -> dict[str, Any]:
    """An error without the parts that may quote the client, unless ``texts`` are logged.

    These are the message of a client error and the name of an unknown field.
    """
    hidden = {"message"} if status < 500 and not texts else set()
    if error.get("code") == "unknown_parameter" and not texts:
        hidden.add("param")
    return {name: value for name, value in error.items() if value is not None and name not in hidden}
