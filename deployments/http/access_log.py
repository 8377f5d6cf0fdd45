"""One line in the log for each request, however it ends; what was asked and answered only where that is wanted."""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.engines.client import Work
from deployments.engines.tracing import Tracing
from deployments.log_file import LOGGED_HEADER, LONGEST_PATH
from deployments.protocol.errors import ApiError
from deployments.protocol.request_ids import request_id
from deployments.protocol.responses import Answer
from deployments.protocol.schema import Generation

CLIENT_GONE = 499
_LONGEST_ERROR = 10_000


@dataclass(frozen=True)
class Log:
    """Where lines go.

    Attributes:
        write: takes a line.
        secret: of this service alone; makes the hashes of `user` useless to whoever has a list of users.
        texts: prompts and answers are written too.
    """

    write: Callable[[Mapping[str, Any]], None]
    secret: bytes
    texts: bool = False

    def pseudonym(self, user: str) -> str:
        """The same for the same user for as long as the service runs."""
        return hmac.new(self.secret, user.encode("utf-8", "replace"), hashlib.sha256).hexdigest()[:16]


class Entry:
    """The line of one request, as it grows.

    Attributes:
        id: of the request.
        key: whose key it came with, once that is known.
    """

    def __init__(self, log: Log, scope: Scope) -> None:
        self.id = request_id(scope)
        self.key: str | None = None
        self._log = log
        self._method, self._path = str(scope["method"]), str(scope["path"])[:LONGEST_PATH]
        self._came = time.perf_counter()
        self._first_token_s: float | None = None
        self._user: str | None = None
        self._model: str | None = None
        self._prompt: Any = None
        self._work: Work | None = None
        self._answers: Sequence[Answer] = ()
        self._failure: ApiError | None = None

    def asks(self, body: Generation, served: Container[str]) -> None:
        """The request is well-formed; ``served`` are the models that there are, as others' names may be any text."""
        self._model = body.model if body.model in served else None
        self._user = None if body.user is None else self._log.pseudonym(body.user)
        if self._log.texts:
            self._prompt = body.model_dump(include={"messages", "prompt"})

    def answering(self, work: Work, answers: Sequence[Answer]) -> None:
        """It goes to an engine; ``answers`` grow."""
        self._work, self._answers = work, answers

    def progress(self) -> None:
        """A part of an answer came."""
        if self._first_token_s is None:
            self._first_token_s = time.perf_counter() - self._came

    def fails(self, error: ApiError) -> None:
        """The answer ends with ``error`` after it has begun, whatever status it began with."""
        self._failure = error

    def end(self, status: int, error: Mapping[str, Any] | None, tracing: Tracing) -> None:
        """Writes the line; ``error`` is the one in the response's body."""
        if self._failure is not None:
            status, error = self._failure.status, self._failure.body()["error"]
        seconds = time.perf_counter() - self._came
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
        if self._work is not None:
            line |= {
                "engine": self._work.engine.name,
                "prompt_tokens": self._work.prompt_tokens,
                "new_tokens": sum(len(one.tokens) for one in self._answers),
                "finish_reasons": [one.finish_reason for one in self._answers],
            }
        if self._model is not None:
            tracing.ended(self._model, seconds, status, line)
        if error is not None:
            line["error"] = _loggable(status, error, self._log.texts)
        if self._prompt is not None:
            line |= {"prompt": self._prompt, "answers": [one.text for one in self._answers]}
        self._log.write(line)


class AccessLog:
    """ASGI middleware, outside of all others; the handlers find the entry in the request's state."""

    def __init__(self, app: ASGIApp, *, log: Log, tracing: Tracing) -> None:
        self._app, self._log, self._tracing = app, log, tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        entry, response = Entry(self._log, scope), _Watched(send)
        scope.setdefault("state", {})["entry"] = entry
        status: int | None = None
        try:
            await self._app(scope, receive, response)
            status = response.status if response.ended else None
        except Exception:
            status = 500
            raise
        finally:
            # Cancelled, or left without an end: the client has gone.
            entry.end(status or CLIENT_GONE, response.error(), self._tracing)


class _Watched:
    """A response on its way; keeps the body of an error."""

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
        """The error in the body, if it has one."""
        try:
            error = json.loads(self._body)["error"]
        except (ValueError, KeyError, TypeError):
            return None
        return error if isinstance(error, dict) else None


def _loggable(status: int, error: Mapping[str, Any], texts: bool) -> dict[str, Any]:
    """An error without what may quote the client: the message of its mistakes, and the name of a field unknown here."""
    hidden = {"message"} if status < 500 and not texts else set()
    if error.get("code") == "unknown_parameter" and not texts:
        hidden.add("param")
    return {name: value for name, value in error.items() if value is not None and name not in hidden}
