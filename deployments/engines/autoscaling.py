"""How many replicas an engine needs: enough to work off what is outstanding in the time that was promised."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ray.serve.config import AutoscalingContext

OUTSTANDING, SPEED = "outstanding_tokens", "tokens_per_second"
"""What every replica records."""

_USUAL_TOKENS = 256
"""Of a request that still waits in an ingress, where no replica says what requests are like."""


def wanted_replicas(outstanding: float, speed: float, seconds: float, current: int) -> int:
    """Replicas that work off ``outstanding`` tokens in ``seconds``, each at ``speed`` tokens per second.

    Until a speed has been measured there is no saying: as many as now, and one if there is anything to do.
    """
    if outstanding <= 0:
        return 0
    return max(1, current) if speed <= 0 else max(1, math.ceil(outstanding / (speed * seconds)))


class TokensPolicy:
    """Serve's autoscaling policy; delays and bounds are applied by Serve."""

    def __init__(self, target_seconds: float) -> None:
        self._seconds = target_seconds

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        recorded = context.aggregated_metrics or {}
        outstanding = sum(_values(recorded, OUTSTANDING))
        speeds = [speed for speed in _values(recorded, SPEED) if speed > 0]
        running = max(1.0, context.total_running_requests)
        usual = outstanding / running if outstanding else _USUAL_TOKENS
        outstanding += usual * (context.total_queued_requests or 0)
        speed = sum(speeds) / len(speeds) if speeds else 0.0
        return wanted_replicas(outstanding, speed, self._seconds, context.current_num_replicas), {}


def _values(recorded: Mapping[str, Mapping[Any, float]], name: str) -> list[float]:
    return list(recorded.get(name, {}).values())
