"""Rate limits per API key: one actor for all ingresses, so that limits do not grow with their number."""

from __future__ import annotations

import time
from dataclasses import dataclass

from deployments.ray_internals import NodeBound
from deployments.settings import LimitArgs

_MINUTE = 60.0


@dataclass
class _Bucket:
    """A token bucket that refills evenly up to ``size`` within a minute."""

    size: float
    available: float
    at: float

    def refill(self, now: float) -> None:
        self.available = min(self.size, self.available + (now - self.at) * self.size / _MINUTE)
        self.at = now

    def seconds_until(self, amount: float) -> float:
        """Seconds until ``amount`` can be taken; an amount above ``size`` needs a full bucket."""
        return max(0.0, min(amount, self.size) - self.available) * _MINUTE / self.size


class RateLimiter:
    """Token buckets by API key."""

    def __init__(self, limits: LimitArgs) -> None:
        self._sizes = [limits.requests_per_minute, limits.tokens_per_minute]
        self._buckets: dict[str, list[_Bucket]] = {}

    def take(self, key: str, tokens: int) -> float:
        """Take one request of ``tokens`` from the key's buckets.

        Returns 0 if it was taken, or else the seconds until it could be.
        """
        now = time.monotonic()
        amounts = [amount for amount, size in zip((1, tokens), self._sizes, strict=True) if size is not None]
        buckets = self._buckets.setdefault(key, [_Bucket(size, size, now) for size in self._sizes if size is not None])
        for bucket in buckets:
            bucket.refill(now)
        wait = max((one.seconds_until(amount) for one, amount in zip(buckets, amounts, strict=True)), default=0.0)
        if not wait:
            for one, amount in zip(buckets, amounts, strict=True):
                one.available -= amount
        return wait


class BoundRateLimiter(NodeBound, RateLimiter):
    """The rate limiter as Serve runs it."""
