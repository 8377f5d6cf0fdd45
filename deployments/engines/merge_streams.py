"""Merging of several asynchronous streams into one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import TypeVar

T = TypeVar("T")


async def merge_streams(streams: Sequence[AsyncGenerator[T]]) -> AsyncGenerator[T]:
    """Yield the items of all streams as they arrive.

    An error of one stream is raised here. An error, or closing this generator, closes all streams.
    """
    arrived: asyncio.Queue[T | BaseException | None] = asyncio.Queue()

    async def read(stream: AsyncGenerator[T]) -> None:
        try:
            async for item in stream:
                arrived.put_nowait(item)
            arrived.put_nowait(None)
        except Exception as error:  # raised again below, where the merged stream is read
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
