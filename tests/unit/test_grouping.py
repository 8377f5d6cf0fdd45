"""Tests in parallel: a file's tests, and all tests with Ray clusters, stay in one process."""

from __future__ import annotations

import os

import pytest


@pytest.mark.skipif("PYTEST_XDIST_WORKER" not in os.environ, reason="tests run in one process")
def test_the_group_of_a_test_reaches_the_scheduler(request: pytest.FixtureRequest) -> None:
    """Without it, a module's fixtures (services, compiled kernels, reports) are made once in every process."""
    assert request.node.nodeid.endswith("@tests/unit/test_grouping.py")
