"""Answers to HEAD and OPTIONS for all paths, which FastAPI would require in each route."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from starlette.responses import Response
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class HeadAndOptions:
    """ASGI middleware that answers HEAD like GET without a body, and OPTIONS with the allowed methods.

    Args:
        routes: returns the routes of the application.
    """

    def __init__(self, app: ASGIApp, routes: Callable[[], Sequence[BaseRoute]]) -> None:
        self._app, self._routes = app, routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        method = scope["method"] if scope["type"] == "http" else ""
        if method == "OPTIONS" and (allowed := self._allowed(scope)):
            await Response(status_code=204, headers={"Allow": ", ".join(allowed)})(scope, receive, send)
        elif method == "HEAD":
            await self._app({**scope, "method": "GET"}, receive, _without_body(send))
        else:
            await self._app(scope, receive, send)

    def _allowed(self, scope: Scope) -> list[str]:
        """Methods of the path; none for an unknown path."""
        found = {method for route in self._routes() for method in _methods(route, scope)}
        return sorted(found | {"OPTIONS"} | ({"HEAD"} if "GET" in found else set())) if found else []


def _methods(route: BaseRoute, scope: Scope) -> set[str]:
    match, _ = route.matches(scope)
    # A mounted application has no methods; that of the documentation's files can only be read.
    return set() if match is Match.NONE else set(getattr(route, "methods", None) or {"GET"})


def _without_body(send: Send) -> Send:
    async def sent(message: Message) -> None:
        await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

    return sent
