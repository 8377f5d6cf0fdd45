"""Several streams as one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from deployments.engines.merge_streams import merge_streams
from deployments.engines.metrics_scrape import merge_metrics


async def counting(to: int, closed: list[int], fail: bool = False) -> AsyncGenerator[int]:
    try:
        for number in range(to):
            await asyncio.sleep(0)
            yield number
        if fail:
            raise ValueError("broken")
    finally:
        closed.append(to)


def test_everything_arrives_and_all_are_closed() -> None:
    async def scene() -> None:
        closed: list[int] = []
        found = [item async for item in merge_streams([counting(3, closed), counting(0, closed), counting(5, closed)])]
        assert sorted(found) == sorted([*range(3), *range(5)])
        assert sorted(closed) == [0, 3, 5]

    asyncio.run(scene())


def test_one_that_fails_closes_the_others() -> None:
    async def scene() -> None:
        closed: list[int] = []
        with pytest.raises(ValueError, match="broken"):
            async for _ in merge_streams([counting(1, closed, fail=True), counting(10**9, closed)]):
                pass
        assert sorted(closed) == [1, 10**9]
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(scene())


def test_a_reader_that_goes_closes_all() -> None:
    async def scene() -> None:
        closed: list[int] = []
        stream = merge_streams([counting(10**9, closed), counting(10**9, closed)])
        await anext(stream)
        await stream.aclose()
        assert closed == [10**9, 10**9]
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(scene())


def test_metrics_of_several_nodes_stand_together() -> None:
    node = '# HELP ray_entmtp_a about a\n# TYPE ray_entmtp_a gauge\nray_entmtp_a{node="%d"} 1\nray_other 2\n'
    text = merge_metrics([node % 1, "", node % 2])
    assert text.splitlines() == [
        "# HELP ray_entmtp_a about a",
        "# TYPE ray_entmtp_a gauge",
        'ray_entmtp_a{node="1"} 1',
        'ray_entmtp_a{node="2"} 1',
    ]
