"""Replicas listen on their node's address, and a Ray that would let them listen elsewhere is refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import ray
from ray.serve._private import replica

from deployments import TESTED_RAY, ray_internals
from deployments.engines.rate_limit import BoundRateLimiter
from deployments.engines.replica import BoundEngineReplica
from deployments.http.ingress import BoundIngress
from deployments.ray_internals import NodeBound
from entmtp.errors import EntMTPError
from tests.helpers.strict_files import constraint


class Server:
    def __init__(self) -> None:
        self.addresses: list[str] = []

    def add_insecure_port(self, address: str) -> int:
        self.addresses.append(address)
        return 7


class Plain:
    def __init__(self, given: int) -> None:
        self.given = given


class Checked(Plain):
    checks = 0

    def check_health(self) -> None:
        self.checks += 1


class BoundPlain(NodeBound, Plain):
    pass


class BoundChecked(NodeBound, Checked):
    pass


@pytest.fixture(autouse=True)
def _restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(ray_internals, "_bound", [])
    given = vars(replica)["add_port_to_grpc_server"]
    yield
    vars(replica)["add_port_to_grpc_server"] = given


def as_serve_does(server: Server) -> int:
    """Serve's call after a deployment's ``__init__``."""
    opened: int = vars(replica)["add_port_to_grpc_server"](server, "[::]:0")
    return opened


@pytest.mark.parametrize(("node", "expected"), [("10.0.0.7", "10.0.0.7:0"), ("fd00::7", "[fd00::7]:0")])
def test_a_replica_listens_on_its_nodes_address(node: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: node)
    server = Server()
    assert BoundPlain(3).given == 3
    assert as_serve_does(server) == 7
    assert server.addresses == [expected]


@pytest.mark.parametrize("kind", [BoundPlain, BoundChecked])
def test_a_port_that_was_opened_in_another_way_ends_the_replica(kind: Any) -> None:
    made = kind(3)
    with pytest.raises(EntMTPError, match=rf"its replicas may listen on all interfaces.*ray=={TESTED_RAY}"):
        made.check_health()
    as_serve_does(Server())
    made.check_health()
    assert getattr(made, "checks", 1) == 1


def test_every_deployment_is_bound_before_it_is_made() -> None:
    for kind in (BoundIngress, BoundEngineReplica, BoundRateLimiter):
        assert kind.__mro__[1] is NodeBound


def test_the_version_that_is_advised_is_the_tested_one() -> None:
    assert constraint("ray") == TESTED_RAY
