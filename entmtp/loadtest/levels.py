"""Levels of load of a test: numbers of users in a closed loop, arrival rates in an open loop."""

from __future__ import annotations

import math
from dataclasses import dataclass

from entmtp.errors import EntMTPError

SWEEP = (1, 2, 4, 8, 16, 32, 64)
"""Default numbers of users."""
_MOST_USERS = 4096
_MOST_RATE = 1e4
_REQUESTS_OF_A_USER = 2
"""Least requests per user in each round: with fewer, all users would seldom be active at once."""


@dataclass(frozen=True)
class Level:
    """A level of load: ``users`` of a closed loop, or ``rate`` requests a second of an open loop."""

    users: int | None = None
    rate: float | None = None

    def __str__(self) -> str:
        if self.users is None:
            return f"{self.rate:g} requests/s"
        return f"{self.users} user" + ("" if self.users == 1 else "s")

    def requests(self, least: int) -> int:
        """Number of requests of a round."""
        return max(least, _REQUESTS_OF_A_USER * (self.users or 0))


def parse_levels(users: str | None, rates: str | None) -> list[Level]:
    """Parse comma-separated numbers into levels, in their order and each once. The default is :data:`SWEEP`.

    Raises:
        EntMTPError: a text is not a number, or out of range.
    """
    if users is None and rates is None:
        return [Level(users=count) for count in SWEEP]
    closed = [Level(users=_user_count(text)) for text in users.split(",")] if users is not None else []
    opened = [Level(rate=_rate(text)) for text in rates.split(",")] if rates is not None else []
    return list(dict.fromkeys(closed + opened))


def _user_count(text: str) -> int:
    if text.strip().isdecimal() and 1 <= (count := int(text)) <= _MOST_USERS:
        return count
    raise EntMTPError(f"users: '{text}' is not a number from 1 to {_MOST_USERS}; give numbers such as 4 or 1,8,64")


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    if 0 < rate <= _MOST_RATE:
        return rate
    raise EntMTPError(f"rate: '{text}' is not above 0 and at most {_MOST_RATE:g}; give numbers such as 2 or 0.5,1,2")
