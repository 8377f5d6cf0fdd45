"""A small service on a socket that speaks as much of OpenAI's API as a load generator needs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web


class Crowd:
    """Counter of concurrent requests of a service."""

    def __init__(self, together: int) -> None:
        self.barrier = asyncio.Barrier(together)
        self.running = self.most = 0

    def enter(self) -> None:
        self.running += 1
        self.most = max(self.most, self.running)


@asynccontextmanager
async def service(together: int) -> AsyncIterator[tuple[str, Crowd]]:
    """A service on a socket that writes three words, two at first; 'fail', 'odd', 'cut' and 'full' are what they say.

    'meet' waits until so many requests are there ``together``. 'close' ends the connection after the answer,
    unannounced.
    """
    crowd = Crowd(together)

    async def chat(request: web.Request) -> web.StreamResponse:
        crowd.enter()
        try:
            return await answered(request)
        finally:
            crowd.running -= 1

    async def answered(request: web.Request) -> web.StreamResponse:
        prompt = (await request.json())["messages"][0]["content"]
        if prompt == "full":
            return web.json_response({"error": {"message": "later", "type": "rate_limit_error"}}, status=429)
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)

        async def send(**changes: Any) -> None:
            base = {"id": "x", "object": "chat.completion.chunk", "created": 0, "model": "m", "choices": []}
            await response.write(f"data: {json.dumps(base | changes)}\n\n".encode())

        def delta(text: str) -> list[dict[str, Any]]:
            return [{"index": 0, "delta": {"content": text}, "finish_reason": None}]

        await send(choices=delta(""))
        await send(choices=delta(f"{prompt} two"))
        if prompt == "meet":
            await crowd.barrier.wait()
        await asyncio.sleep(0.001)
        if prompt == "fail":
            await response.write(b'data: {"error": {"message": "died", "type": "unavailable_error"}}\n\n')
            return response
        if prompt == "odd":
            await response.write(b'data: {"error": "died"}\n\n')
            return response
        if prompt == "cut":
            return response
        await send(choices=delta(" three"))
        usage = {"prompt_tokens": 1, "completion_tokens": 3, "total_tokens": 4, "speculation": {"tau": 1.5}}
        await send(usage=usage)
        await response.write(b"data: [DONE]\n\n")
        if prompt == "close":
            await response.write_eof()
            assert request.transport is not None
            request.transport.close()
        return response

    application = web.Application()
    application.router.add_post("/v1/chat/completions", chat)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1", crowd
    finally:
        await runner.cleanup()
