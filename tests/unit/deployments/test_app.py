"""Options that the application gives to Serve."""

from __future__ import annotations

from typing import Any

import pytest

from deployments.app import _engine
from deployments.settings import EngineArgs, LimitArgs, RoutingArgs


def deployed(queued: int, replicas: int) -> Any:
    """An engine as Serve sees it."""
    args = EngineArgs.parse(
        name="e",
        model_name="m",
        num_cpus=1,
        engine={"slots": 8, "max_waiting": 4},
        autoscaling={"max_replicas": replicas},
    )
    return _engine(args, RoutingArgs(), LimitArgs(queued_requests=queued))._bound_deployment


@pytest.mark.parametrize(("queued", "replicas", "expected"), [(8, 1, 12), (64, 1, 64), (8, 3, 36)])
def test_a_burst_that_the_replicas_have_room_for_may_wait_for_its_routing(
    queued: int, replicas: int, expected: int
) -> None:
    deployment = deployed(queued, replicas)
    assert deployment.max_ongoing_requests == 12
    assert deployment.max_queued_requests == expected


def test_a_replicas_threads_do_not_spin_on_the_cores_of_others() -> None:
    environment = deployed(queued=8, replicas=1).ray_actor_options["runtime_env"]["env_vars"]
    assert environment["OMP_NUM_THREADS"] == "1"
    assert environment["OMP_WAIT_POLICY"] == "passive"
