"""Every private name of Ray that the service uses, with checks that they still work as expected."""

from __future__ import annotations

from typing import Any

import ray
from ray import serve
from ray.experimental import internal_kv
from ray.util.metrics import Counter

from deployments import TESTED_RAY
from deployments.start_progress import flush_log
from entmtp.errors import EntMTPError

_OPENER = "add_port_to_grpc_server"
"""Name of the function that opens a replica's gRPC port, a global of Serve's module of replicas."""


def _unsupported(why: object) -> EntMTPError:
    return EntMTPError(
        f"ray: version {ray.__version__} does not suit the service ({why}); pip install 'ray=={TESTED_RAY}'"
    )


try:
    from ray._private.state import actors
    from ray.serve._private import replica as _replica
    from ray.serve._private.common import ReplicaState
    from ray.serve._private.utils import generate_request_id
    from ray.serve.context import _get_global_client
    from ray.serve.context import _set_request_context as set_request_context

    _open_port = getattr(_replica, _OPENER)
except (ImportError, AttributeError) as error:
    raise _unsupported(error) from error

__all__ = [
    "NodeBound",
    "actors",
    "generate_request_id",
    "get_value",
    "http_host",
    "put_value",
    "record_zero",
    "running_replicas",
    "set_request_context",
]

_bound: list[str] = []
"""Addresses on which this process's replica listens."""


class NodeBound:
    """First base class of every deployment: its replicas listen only on their node's address, where Serve reaches them.

    After a deployment's ``__init__`` Serve opens a gRPC server in the replica on all interfaces, and this server
    unpickles its messages. The next base class is the deployment itself. Both are combined in the deployment's own
    module: a replica's process imports the module of its class, and so no other deployment.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        host = ray.util.get_node_ip_address()
        host = f"[{host}]" if ":" in host else host

        def open_port(server: Any, address: str) -> int:
            _bound.append(f"{host}:{address.rpartition(':')[2]}")
            return int(_open_port(server, _bound[-1]))

        setattr(_replica, _OPENER, open_port)
        super().__init__(*args, **kwargs)

    def check_health(self) -> None:
        """Flush the log and check the replica; Serve calls this every few seconds.

        Raises:
            EntMTPError: Serve has opened the replica's port in another way than by the function replaced here.
        """
        flush_log()
        if not _bound:
            raise _unsupported("its replicas may listen on all interfaces")
        if (own := getattr(super(), "check_health", None)) is not None:
            own()


def http_host() -> str:
    """Address on which Serve's proxies listen."""
    client: Any = _get_global_client()
    return str(client.http_config.host)


def put_value(key: bytes, value: bytes) -> None:
    """Write a value to the cluster's key-value store."""
    internal_kv._internal_kv_put(key, value, overwrite=True)


def get_value(key: bytes) -> bytes | None:
    """Read a value from the cluster's key-value store; None if it is missing or Ray is not connected."""
    value: bytes | None = internal_kv._internal_kv_get(key) if internal_kv._internal_kv_initialized() else None
    return value


def record_zero(counter: Counter, labels: dict[str, str]) -> None:
    """Export a counter with the value 0, which ``Counter.inc`` refuses."""
    counter._record(0.0, tags=labels)


def running_replicas(application: str) -> dict[str, int]:
    """Number of running replicas by deployment."""
    deployments = serve.status().applications[application].deployments
    return {name: status.replica_states.get(ReplicaState.RUNNING, 0) for name, status in deployments.items()}
