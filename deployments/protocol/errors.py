"""Errors in the format of OpenAI's API: a status, and a body that names the parameter and the fix."""

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
"""Error types by status; other statuses are an invalid_request_error or a server_error."""

_UNKNOWN, _EXTRA = "unknown_parameter", "extra_forbidden"
"""OpenAI's and pydantic's code for an unknown field."""

FULL_HEADER = b"x-engine-full"
"""Header of a 429 for a full engine, which distinguishes it from a key's rate limit."""


class ApiError(Exception):
    """Error that ends a request with ``status`` and a body with the reason."""

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
        """JSON body of the error, also the payload of an error event in a stream."""
        return {
            "error": {
                "message": printable(self.message),
                "type": _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error"),
                "param": None if self.param is None else printable(self.param),
                "code": self.code,
            }
        }

    def response(self) -> JSONResponse:
        """Complete response for the error."""
        return JSONResponse(self.body(), self.status, self.headers)


def rate_limit_error(message: str, seconds: int) -> ApiError:
    """Error 429 with the seconds after which the client may try again."""
    headers = {"Retry-After": str(seconds)}
    return ApiError(429, f"{message}; try again in {seconds} s", code="rate_limit_exceeded", headers=headers)


def engine_full_error(seconds: int) -> ApiError:
    """Error 429 for a request that every client of the engine would get now: it would wait for too long."""
    error = rate_limit_error("too many requests wait", seconds)
    error.headers[FULL_HEADER.decode()] = "1"
    return error


def context_error(context: int, needed: str, fix: str, param: str) -> ApiError:
    """Error for a request that doesn't fit into ``context`` tokens.

    Gateways and frameworks recognise it by OpenAI's first sentence or by the code. Some read only the message, so the
    message contains the code too.
    """
    code = "context_length_exceeded"
    message = f"This model's maximum context length is {context} tokens. However, {needed}. Please {fix}. ({code})"
    return ApiError(400, message, param=param, code=code)


def add_error_handlers(api: FastAPI) -> None:
    """Make the application answer every error in OpenAI's format, including FastAPI's own and unexpected ones."""
    api.add_middleware(_UnexpectedErrors)

    @api.exception_handler(ApiError)
    async def refused(_: Request, error: ApiError) -> JSONResponse:
        return error.response()

    @api.exception_handler(RequestValidationError)
    async def malformed(_: Request, error: RequestValidationError) -> JSONResponse:
        return validation_error(error.errors()).response()

    @api.exception_handler(HTTPException)
    async def unanswered(request: Request, error: HTTPException) -> JSONResponse:
        if error.status_code == 400:  # FastAPI's status for a body that can't be parsed
            return ApiError(400, "body: it can't be read; send a JSON object", code="invalid_json").response()
        message = f"{request.method} {_shortened(request.url.path)}: {error.detail}"
        return ApiError(error.status_code, message, headers=error.headers).response()


class _UnexpectedErrors:
    """ASGI middleware that answers unhandled exceptions with a 500.

    Starlette's own handler runs outside of all middlewares, so its response would lack the CORS headers.
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
            await unexpected_error(error).response()(scope, receive, send)


def unexpected_error(error: Exception) -> ApiError:
    """Error 500 that tells the client only the type of an internal exception."""
    return ApiError(500, f"service: {type(error).__name__}; the log says more")


def validation_error(errors: Sequence[Any]) -> ApiError:
    """Error for the first of pydantic's ``errors`` about a body, with the path of its field."""
    first = errors[0]
    if first["type"] == "json_invalid":
        problem, at = uncapitalise(first["ctx"]["error"]), first["loc"][-1]
        message = f"body: it is not valid JSON at character {at}: {problem}; send a JSON object"
        return ApiError(400, message, code="invalid_json")
    # Pydantic's path also has the branches of unions; clients only know the path in the body.
    parts = first["loc"][1:]
    path = [str(part) for part in parts if not _is_branch(part)]
    if first["type"] == _EXTRA and _is_branch(parts[-1]):  # an unknown field whose name looks like a branch
        path.append(str(parts[-1]))
    if first["type"] == UNSUPPORTED:
        context = first["ctx"]
        param = ".".join([*path, context["field"]])
        request = f"{context['value']} requests what this service doesn't have{context['reason']}"
        message = f"{param}: {request}; {context['fix']}"
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
    return invalid_value(validation_message(first, param), param)


def invalid_value(message: str, param: str) -> ApiError:
    """Error 400 for the value of a parameter."""
    return ApiError(400, message, param=param, code="invalid_value")


def printable(text: str) -> str:
    """Replace characters that UTF-8 can't encode, such as half a surrogate pair from a client."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _shortened(name: str) -> str:
    return name if len(name) <= MAX_QUOTED else f"{name[: MAX_QUOTED - 1]}…"


def _is_branch(part: int | str) -> bool:
    return isinstance(part, str) and part.startswith("[")
