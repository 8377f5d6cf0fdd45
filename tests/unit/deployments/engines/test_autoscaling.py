"""Number of replicas for an engine."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from deployments.engines.autoscaling import OUTSTANDING, SPEED, TokensPolicy, desired_replicas


@pytest.mark.parametrize(
    ("outstanding", "speed", "current", "expected"),
    [
        (0, 100, 3, 0),
        (1, 100, 1, 1),
        (1000, 100, 1, 1),
        (1001, 100, 1, 2),
        (10_000, 100, 1, 10),
        (500, 0, 2, 2),  # nothing measured yet
        (500, 0, 0, 1),
    ],
)
def test_enough_to_work_off_what_is_outstanding(outstanding: float, speed: float, current: int, expected: int) -> None:
    assert desired_replicas(outstanding, speed, 10.0, current) == expected


def context(recorded: dict[str, dict[str, float]], running: float = 0, queued: float = 0, current: int = 1) -> Any:
    return SimpleNamespace(
        aggregated_metrics=recorded,
        total_running_requests=running,
        total_queued_requests=queued,
        current_num_replicas=current,
    )


def test_replicas_tell_together_what_there_is_to_do() -> None:
    policy = TokensPolicy(target_seconds=10.0)
    recorded = {OUTSTANDING: {"a": 900.0, "b": 1200.0}, SPEED: {"a": 100.0, "b": 0.0}}
    assert policy(context(recorded, running=4))[0] == 3
    # Two more that wait in an ingress are as long as those that run.
    assert policy(context(recorded, running=4, queued=2))[0] == 4


def test_an_idle_engine_may_go_and_a_waiting_request_brings_it_back() -> None:
    policy = TokensPolicy(target_seconds=10.0)
    assert policy(context({OUTSTANDING: {"a": 0.0}, SPEED: {"a": 50.0}}))[0] == 0
    assert policy(context({}, queued=1, current=0))[0] == 1
