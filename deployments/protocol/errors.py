"""Errors as OpenAI's API reports them: a status, and a body that names the parameter and the fix."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.protocol.compatibility import UNSUPPORTED
from entmtp.errors import MAX_QUOTED, uncapitalise, validation_message

_log = logging.getLogger("ray.serve")
_TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    408: "timeout_error",
    429: "rate_limit_error",
    503: "unavailable_error",
    504: "timeout_error",
}
"""Of statuses that are neither just a client's mistake nor just a server's."""

_UNKNOWN, _EXTRA = "unknown_parameter", "extra_forbidden"
"""Our name, and pydantic's, of a field that is unknown here."""

FULL_HEADER = b"x-engine-full"
"""Of a 429: it is the engine that is full, and not this key that asked too often."""


class ApiError(Exception):
    """Ends a request with ``status`` and a body that says why."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """What a client's library reads; also the payload of an error event in a stream."""
        return {
            "error": {
                "message": printable(self.message),
                "type": _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error"),
                "param": None if self.param is None else printable(self.param),
                "code": self.code,
            }
        }

    def response(self) -> JSONResponse:
        """The whole answer."""
        return JSONResponse(self.body(), self.status, self.headers)


def too_many(message: str, seconds: int) -> ApiError:
    """A 429 that says when to try again."""
    headers = {"Retry-After": str(seconds)}
    return ApiError(429, f"{message}; try again in {seconds} s", code="rate_limit_exceeded", headers=headers)


def full_error(seconds: int) -> ApiError:
    """A 429 for a request whose engine has as many as may wait already."""
    error = too_many("too many requests wait", seconds)
    error.headers[FULL_HEADER.decode()] = "1"
    return error


def context_error(context: int, needed: str, fix: str, param: str) -> ApiError:
    """A request that doesn't fit into ``context`` tokens.

    Gateways and frameworks know it by OpenAI's first sentence, or by the code, for which some read the message only.
    """
    code = "context_length_exceeded"
    message = f"This model's maximum context length is {context} tokens. However, {needed}. Please {fix}. ({code})"
    return ApiError(400, message, param=param, code=code)


def tell_errors(api: FastAPI) -> None:
    """Has the application report every error so, also those of FastAPI and unexpected ones."""
    api.add_middleware(_Unexpected)

    @api.exception_handler(ApiError)
    async def refused(_: Request, error: ApiError) -> JSONResponse:
        return error.response()

    @api.exception_handler(RequestValidationError)
    async def malformed(_: Request, error: RequestValidationError) -> JSONResponse:
        return of_validation(error.errors()).response()

    @api.exception_handler(HTTPException)
    async def unanswered(request: Request, error: HTTPException) -> JSONResponse:
        if error.status_code == 400:  # FastAPI's, for a body that no parser gets through
            return ApiError(400, "body: it can't be read; send a JSON object", code="invalid_json").response()
        message = f"{request.method} {_shortened(request.url.path)}: {error.detail}"
        return ApiError(error.status_code, message, headers=error.headers).response()


class _Unexpected:
    """ASGI middleware that answers for exceptions that nothing else answers for.

    Starlette's own handler of them stands outside of all middlewares, and browsers would not get its answer.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def sent(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, sent)
        except Exception as error:
            if started or scope["type"] != "http":
                raise
            _log.exception("an unexpected error")
            await unexpected(error).response()(scope, receive, send)


def unexpected(error: Exception) -> ApiError:
    """What a client may know of an error that is ours."""
    return ApiError(500, f"service: {type(error).__name__}; the log says more")


def of_validation(errors: Sequence[Any]) -> ApiError:
    """The first thing that is wrong with a body, by the name of its field; ``errors`` are pydantic's."""
    first = errors[0]
    if first["type"] == "json_invalid":
        problem, at = uncapitalise(first["ctx"]["error"]), first["loc"][-1]
        message = f"body: it is not valid JSON at character {at}: {problem}; send a JSON object"
        return ApiError(400, message, code="invalid_json")
    # A union names the branch that was tried too; only the path that stands in the body means something to a client.
    parts = first["loc"][1:]
    path = [str(part) for part in parts if not _is_branch(part)]
    if first["type"] == _EXTRA and _is_branch(parts[-1]):  # a client may call a field so
        path.append(str(parts[-1]))
    if first["type"] == UNSUPPORTED:
        context = first["ctx"]
        param = ".".join([*path, context["field"]])
        message = f"{param}: {context['value']} requests what this service doesn't have; {context['fix']}"
        return ApiError(400, message, param=param, code=UNSUPPORTED)
    param = _shortened(".".join(path))
    if not param:
        message = f"body: {uncapitalise(first['msg'])}; send a JSON object with content-type application/json"
        return ApiError(400, message, code="invalid_type")
    if first["type"] == _EXTRA:
        return ApiError(400, f"{param}: this field is unknown here; leave it out", param=param, code=_UNKNOWN)
    if first["type"] == "missing":
        message = f"{param}: this field is missing; give it"
        return ApiError(400, message, param=param, code="missing_required_parameter")
    return invalid(validation_message(first, param), param)


def invalid(message: str, param: str) -> ApiError:
    """A 400 for a value that can't be."""
    return ApiError(400, message, param=param, code="invalid_value")


def printable(text: str) -> str:
    """Without what UTF-8 can't say: a client may have sent half a surrogate pair."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _shortened(name: str) -> str:
    return name if len(name) <= MAX_QUOTED else f"{name[: MAX_QUOTED - 1]}…"


def _is_branch(part: int | str) -> bool:
    return isinstance(part, str) and part.startswith("[")
