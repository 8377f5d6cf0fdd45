"""Autoscaling policy: enough replicas to generate all outstanding tokens within the target time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ray.serve.config import AutoscalingContext

OUTSTANDING, SPEED = "outstanding_tokens", "tokens_per_second"
"""Metrics that every replica records."""

_DEFAULT_REQUEST_TOKENS = 256
"""Assumed tokens of a request that waits in an ingress, as long as no replica has reported any."""


def desired_replicas(outstanding: float, speed: float, seconds: float, current: int) -> int:
    """Number of replicas that process ``outstanding`` tokens in ``seconds``, each at ``speed`` tokens per second.

    Before a speed has been measured it is the current number, and at least one if any tokens are outstanding.
    """
    if outstanding <= 0:
        return 0
    return max(1, current) if speed <= 0 else max(1, math.ceil(outstanding / (speed * seconds)))


class TokensPolicy:
    """Autoscaling policy for Ray Serve, which applies delays and bounds itself."""

    def __init__(self, target_seconds: float) -> None:
        self._seconds = target_seconds

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        recorded = context.aggregated_metrics or {}
        outstanding = sum(_values(recorded, OUTSTANDING))
        speeds = [speed for speed in _values(recorded, SPEED) if speed > 0]
        running = max(1.0, context.total_running_requests)
        tokens_per_request = outstanding / running if outstanding else _DEFAULT_REQUEST_TOKENS
        outstanding += tokens_per_request * (context.total_queued_requests or 0)
        speed = sum(speeds) / len(speeds) if speeds else 0.0
        return desired_replicas(outstanding, speed, self._seconds, context.current_num_replicas), {}


def _values(recorded: Mapping[str, Mapping[Any, float]], name: str) -> list[float]:
    return list(recorded.get(name, {}).values())
