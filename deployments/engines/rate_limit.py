"""How much each key may ask for in a minute: one place for all ingresses, so that more of them do not mean more."""

from __future__ import annotations

import time
from dataclasses import dataclass

from deployments.settings import LimitArgs

_MINUTE = 60.0


@dataclass
class _Bucket:
    """Fills evenly up to ``size`` within a minute."""

    size: float
    level: float
    at: float

    def fill(self, now: float) -> None:
        self.level = min(self.size, self.level + (now - self.at) * self.size / _MINUTE)
        self.at = now

    def seconds_until(self, amount: float) -> float:
        """Until ``amount`` can be taken; what is more than the bucket holds can be when it is full."""
        return max(0.0, min(amount, self.size) - self.level) * _MINUTE / self.size


class Limiter:
    """Token buckets by key."""

    def __init__(self, limits: LimitArgs) -> None:
        self._sizes = [limits.requests_per_minute, limits.tokens_per_minute]
        self._buckets: dict[str, list[_Bucket]] = {}

    def take(self, key: str, tokens: int) -> float:
        """Takes one request of ``tokens``; returns 0, or the seconds after which it would be taken."""
        now = time.monotonic()
        amounts = [amount for amount, size in zip((1, tokens), self._sizes, strict=True) if size is not None]
        buckets = self._buckets.setdefault(key, [_Bucket(size, size, now) for size in self._sizes if size is not None])
        for bucket in buckets:
            bucket.fill(now)
        wait = max((one.seconds_until(amount) for one, amount in zip(buckets, amounts, strict=True)), default=0.0)
        if not wait:
            for one, amount in zip(buckets, amounts, strict=True):
                one.level -= amount
        return wait
