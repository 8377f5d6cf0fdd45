"""Nothing is lost when a replica, a node or an ingress dies, nor when the service is redeployed or made smaller."""

from __future__ import annotations

import asyncio

import pytest

from benchmarks.faults import FAULTS, play, staged


@pytest.mark.slow
def test_no_client_is_left_without_an_answer() -> None:
    with staged() as stage:
        found = asyncio.run(play(stage, list(FAULTS), repetitions=1, users=8, tokens=24))
    for fault, (seen,) in found.items():
        assert seen.outcomes["answered"] > 0, fault
        assert seen.outcomes["lost"] == 0, fault
        assert seen.outcomes["wrong"] == 0, fault
        assert seen.leaked == 0, fault
