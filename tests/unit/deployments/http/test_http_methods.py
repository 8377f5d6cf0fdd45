"""HEAD without a body, also before a server would drop it; every other method goes through."""

from __future__ import annotations

import asyncio

import pytest
from starlette.responses import PlainTextResponse
from starlette.types import Message, Receive, Scope, Send

from deployments.http.http_methods import HeadAndOptions


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with the method that arrives."""
    await PlainTextResponse(scope["method"])(scope, receive, send)


@pytest.mark.parametrize(
    ("method", "length", "body"),
    [("HEAD", b"3", b""), ("GET", b"3", b"GET"), ("POST", b"4", b"POST"), ("OPTIONS", b"7", b"OPTIONS")],
)
def test_a_head_is_a_get_without_its_body(method: str, length: bytes, body: bytes) -> None:
    sent: list[Message] = []

    async def receive() -> Message:
        raise AssertionError

    async def send(message: Message) -> None:
        sent.append(message)

    scope: Scope = {"type": "http", "method": method, "headers": [], "path": "/"}
    asyncio.run(HeadAndOptions(echo, list)(scope, receive, send))
    start, *rest = sent
    assert (b"content-length", length) in start["headers"]
    assert b"".join(message["body"] for message in rest) == body
