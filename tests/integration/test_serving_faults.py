"""Nothing is lost when a replica, a node or an ingress dies, nor when the service is redeployed or made smaller."""

from __future__ import annotations

import asyncio

import pytest

from benchmarks.faults import FAULTS, run_faults, service_cluster

pytestmark = pytest.mark.xdist_group("ray")


@pytest.mark.slow
def test_no_client_is_left_without_an_answer() -> None:
    with service_cluster() as stage:
        found = asyncio.run(run_faults(stage, list(FAULTS), repetitions=1, users=8, tokens=24))
    for fault, (outcome,) in found.items():
        assert outcome.outcomes["answered"] > 0, fault
        assert outcome.outcomes["lost"] == 0, fault
        assert outcome.outcomes["wrong"] == 0, fault
        assert outcome.leaked == 0, fault
