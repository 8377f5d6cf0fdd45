"""Endpoints that take turns at every level of load, so that a machine that drifts favours none of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from entmtp.loadtest.levels import Level
from entmtp.loadtest.traffic import OnOutcome, RequestOutcome, Traffic

Rounds = dict[str, list[list[RequestOutcome]]]
"""By endpoint, what came of its requests in each round."""
_WARM_UP_REQUESTS = 2
"""What a service does for the first time counts at no level."""


async def sweep(
    traffic: Sequence[Traffic],
    levels: Sequence[Level],
    rounds: int,
    requests: int,
    seed: int,
    on_begin: Callable[[str], None],
    on_outcome: OnOutcome,
) -> dict[Level, Rounds]:
    """Send load at every level, one after another, after a few requests that warm each endpoint up.

    Prompts go on from level to level: a service has read none of them before, as far as there are enough.

    Args:
        rounds: turns of each endpoint at each level.
        requests: of a round, at least.
        seed: of the moments of open loops.
        on_begin: hears what is sent next.
        on_outcome: hears of every answer.
    """

    async def send(one: Traffic, at: int, level: Level, first: int) -> list[RequestOutcome]:
        on_begin(f"{one.endpoint.name}, {level}, round {at + 1} of {rounds}")
        count = level.requests(requests)
        numbers = range(first + at * count, first + (at + 1) * count)
        if level.users is not None:
            return await one.closed(numbers, level.users, on_outcome)
        assert level.rate is not None
        return await one.open(numbers, level.rate, seed + at, on_outcome)

    for one in traffic:
        await one.closed(range(-_WARM_UP_REQUESTS, 0), 1, lambda _: None)
    found: dict[Level, Rounds] = {}
    first = 0
    for level in levels:
        found[level] = await alternate_endpoints(traffic, rounds, partial(send, level=level, first=first))
        first += rounds * level.requests(requests)
    return found


async def alternate_endpoints(
    traffic: Sequence[Traffic], rounds: int, send: Callable[[Traffic, int], Awaitable[list[RequestOutcome]]]
) -> Rounds:
    """Calls ``send`` with each endpoint and the number of each round; who comes first changes from round to round."""
    found: Rounds = {one.endpoint.name: [] for one in traffic}
    for at in range(rounds):
        for one in traffic if at % 2 == 0 else traffic[::-1]:
            found[one.endpoint.name].append(await send(one, at))
    return found


def texts_by_request(rounds: Sequence[Sequence[RequestOutcome]]) -> dict[tuple[int, int], str]:
    """Complete answers by round and number of the request."""
    return {(at, one.number): one.text for at, round_ in enumerate(rounds) for one in round_ if one.error is None}
