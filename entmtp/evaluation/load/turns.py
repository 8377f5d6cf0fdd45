"""Endpoints that take turns, so that a machine that drifts favours none of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from entmtp.evaluation.load.traffic import Outcome, Traffic

Rounds = dict[str, list[list[Outcome]]]
"""By endpoint, what came of its requests in each round."""


async def in_turns(
    traffic: Sequence[Traffic], rounds: int, send: Callable[[Traffic, int], Awaitable[list[Outcome]]]
) -> Rounds:
    """Calls ``send`` with each endpoint and the number of each round; who comes first changes from round to round."""
    found: Rounds = {one.endpoint.name: [] for one in traffic}
    for at in range(rounds):
        for one in traffic if at % 2 == 0 else traffic[::-1]:
            found[one.endpoint.name].append(await send(one, at))
    return found


def texts_of(rounds: Sequence[Sequence[Outcome]]) -> dict[tuple[int, int], str]:
    """Complete answers by round and number of the request."""
    return {(at, one.number): one.text for at, round_ in enumerate(rounds) for one in round_ if one.error is None}
