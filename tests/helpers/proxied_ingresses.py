"""Fake ingresses and clients on both sides of the proxy middleware."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from starlette.types import Message, Receive, Scope, Send

from deployments.http.proxy_middleware import ProxyMiddleware
from deployments.log_file import LOGGED_HEADER

App = Callable[[Scope, Receive, Send], Any]
PATH = "/v1/completions"


def start(status: int = 200, headers: list[tuple[bytes, bytes]] | None = None) -> Message:
    return {"type": "http.response.start", "status": status, "headers": headers or []}


def part(body: bytes, more: bool = False) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": more}


LOGGED = (LOGGED_HEADER, b"1")
DONE = [start(headers=[LOGGED]), part(b"done")]


class Ingresses:
    """Fake ingresses; each attempt sends the next of the given answers, which may be incomplete."""

    def __init__(self, *answers: list[Message]) -> None:
        self.answers = list(answers)
        self.bodies: list[bytes] = []
        self.headers: list[dict[bytes, bytes]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body, more = body + message["body"], message["more_body"]
        self.bodies.append(body)
        self.headers.append(dict(scope["headers"]))
        for message in self.answers[len(self.bodies) - 1]:
            await send(message)


def send_through(
    app: App,
    *received: Message,
    path: str = PATH,
    headers: list[tuple[bytes, bytes]] | None = None,
    method: str = "POST",
) -> list[Message]:
    """Send these messages through the middleware; returns the messages of the response."""
    sent: list[Message] = []
    messages = iter(received)

    async def receive() -> Message:
        return next(messages)

    async def send(message: Message) -> None:
        sent.append(message)

    through = app if isinstance(app, ProxyMiddleware) else ProxyMiddleware(app)
    scope = {"type": "http", "method": method, "path": path, "headers": headers or []}
    asyncio.run(through(scope, receive, send))
    return sent


def body(text: bytes, more: bool = False) -> Message:
    return {"type": "http.request", "body": text, "more_body": more}


def lines(folder: Path, count: int) -> list[dict[str, Any]]:
    """Read the proxies' log until it has ``count`` lines, for at most a second."""
    end = time.monotonic() + 1.0
    while True:
        found = [json.loads(line) for path in folder.glob("proxy-*.jsonl") for line in path.read_text().splitlines()]
        if len(found) >= count or time.monotonic() > end:
            return found
        time.sleep(0.01)
