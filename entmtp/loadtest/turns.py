"""Alternation of endpoints at every level of load, so that a drift of the machine favours none of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from entmtp.loadtest.levels import Level
from entmtp.loadtest.traffic import OnOutcome, RequestOutcome, Traffic

Rounds = dict[str, list[list[RequestOutcome]]]
"""Outcomes of each round, by endpoint."""
_WARM_UP_REQUESTS = 2
"""Untimed first requests to each endpoint."""


async def sweep(
    traffic: Sequence[Traffic],
    levels: Sequence[Level],
    rounds: int,
    requests: int,
    seed: int,
    on_begin: Callable[[str], None],
    on_outcome: OnOutcome,
) -> dict[Level, Rounds]:
    """Warm each endpoint up, then send load at every level, one after another.

    Prompts continue from level to level, so that no service has seen one before, if there are enough.

    Args:
        rounds: of each endpoint at each level.
        requests: of a round, at least.
        seed: of the arrival times of open loops.
        on_begin: called with a description of each round.
        on_outcome: called with every outcome.
    """

    async def send(one: Traffic, round_index: int, level: Level, first: int) -> list[RequestOutcome]:
        on_begin(f"{one.endpoint.name}, {level}, round {round_index + 1} of {rounds}")
        count = level.requests(requests)
        numbers = range(first + round_index * count, first + (round_index + 1) * count)
        if level.users is not None:
            return await one.closed(numbers, level.users, on_outcome)
        assert level.rate is not None
        return await one.open(numbers, level.rate, seed + round_index, on_outcome)

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
    """Call ``send`` with each endpoint and the index of each round. The first endpoint changes from round to round."""
    found: Rounds = {one.endpoint.name: [] for one in traffic}
    for round_index in range(rounds):
        for one in traffic if round_index % 2 == 0 else traffic[::-1]:
            found[one.endpoint.name].append(await send(one, round_index))
    return found


def texts_by_request(rounds: Sequence[Sequence[RequestOutcome]]) -> dict[tuple[int, int], str]:
    """Texts of complete answers, by round and number of the request."""
    return {(at, one.number): one.text for at, round_ in enumerate(rounds) for one in round_ if one.error is None}
