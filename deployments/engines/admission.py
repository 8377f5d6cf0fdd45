"""The calls of one request go in as room comes, so that one of many answers needs no more room than one of few."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, aclosing

from deployments.protocol.messages import Delta, Failure, Placed

Stream = AsyncGenerator[Placed | Delta | Failure]


class Admission:
    """Lets in the calls of one request: one after another, and so many at most at once.

    One call at a time looks for a replica, so that a request never fills the queue that all requests share. The first
    one decides: while none of a request's calls has been taken, a full engine refuses the request. Later calls wait.
    """

    def __init__(self, most: int) -> None:
        self._running = asyncio.Semaphore(most)
        self._placing = asyncio.Lock()
        self._taken: set[int] = set()

    async def answered(
        self, number: int, start: Callable[[Callable[[], bool]], Stream]
    ) -> AsyncGenerator[tuple[int, Delta | Failure]]:
        """The answer of call ``number``, with that number.

        Args:
            start: sends the call; it is given what to ask when the engine is full: whether to wait for room.
        """
        async with self._running, AsyncExitStack() as placing:
            await placing.enter_async_context(self._placing)
            async with aclosing(start(lambda: self._waits(number))) as stream:
                async for item in stream:
                    if not isinstance(item, Failure):
                        self._taken.add(number)
                    await placing.aclose()
                    if not isinstance(item, Placed):
                        yield number, item

    def _waits(self, refused: int) -> bool:
        """Whether a call that finds no room waits for it: others of the request have been taken."""
        self._taken.discard(refused)
        return bool(self._taken)
