"""Admission of one request's calls to its engine: each starts when there is room for it.

A request for many answers therefore needs no more free slots at once than a request for few.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, aclosing

from deployments.protocol.messages import CallStream, Failure
from entmtp.decoding.outputs import RequestOutput


class Admission:
    """Starts the calls of one request one after another, with at most ``max_running`` at once.

    Only one call at a time is being routed, so that a request never fills the queue that all requests share. While
    none of a request's calls has been accepted, a full engine refuses the request. After that, its calls wait.
    """

    def __init__(self, max_running: int) -> None:
        self._running = asyncio.Semaphore(max_running)
        self._routing = asyncio.Lock()
        self._accepted: set[int] = set()

    async def stream(
        self, number: int, start: Callable[[Callable[[], bool]], CallStream]
    ) -> AsyncGenerator[tuple[int, RequestOutput | Failure]]:
        """Yield the outputs of call ``number`` that are not empty, each with that number.

        Args:
            start: sends the call; its argument decides, when the engine is full, whether the call waits for room.
        """
        async with self._running, AsyncExitStack() as routing:
            await routing.enter_async_context(self._routing)
            async with aclosing(start(lambda: self._waits_for_room(number))) as stream:
                async for item in stream:
                    if not isinstance(item, Failure):
                        self._accepted.add(number)
                    await routing.aclose()
                    if isinstance(item, Failure) or not item.is_empty:
                        yield number, item

    def _waits_for_room(self, number: int) -> bool:
        """Whether a call that finds the engine full waits: only if other calls of the request were accepted."""
        self._accepted.discard(number)
        return bool(self._accepted)
