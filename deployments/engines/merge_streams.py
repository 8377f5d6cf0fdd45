"""Several streams as one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import TypeVar

T = TypeVar("T")


async def merged(streams: Sequence[AsyncGenerator[T]]) -> AsyncGenerator[T]:
    """What any of the streams yields, as it comes; closed, or ended by an error of one, it closes them all."""
    arrived: asyncio.Queue[T | BaseException | None] = asyncio.Queue()

    async def read(stream: AsyncGenerator[T]) -> None:
        try:
            async for item in stream:
                arrived.put_nowait(item)
            arrived.put_nowait(None)
        except Exception as error:  # it is raised where the streams are read
            arrived.put_nowait(error)
        finally:
            await stream.aclose()

    readers = [asyncio.create_task(read(stream)) for stream in streams]
    try:
        running = len(readers)
        while running:
            item = await arrived.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                running -= 1
            else:
                yield item
    finally:
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)
