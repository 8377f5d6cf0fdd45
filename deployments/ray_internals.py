"""Every private name of Ray that the service needs, and the checks that they still do what they did."""

from __future__ import annotations

from typing import Any

import ray
from ray import serve

from deployments import TESTED_RAY
from deployments.start_progress import flush_log
from entmtp.errors import EntMTPError

_OPENER = "add_port_to_grpc_server"
"""Opens a replica's gRPC port; Serve's module of replicas finds it in its own globals."""


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

__all__ = ["NodeBound", "actors", "generate_request_id", "http_host", "running_replicas", "set_request_context"]

_bound: list[str] = []
"""Addresses that this process' replica listens on."""


class NodeBound:
    """First base of every deployment: its replicas listen on their node's address alone, by which Serve reaches them.

    After a deployment's ``__init__`` Serve opens a gRPC server in the replica, on all interfaces, which unpickles what
    it is sent. The next base is the deployment itself.
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
        """Serve's hook, every few seconds: writes out the log, too, so that it outlives the replica.

        Raises:
            EntMTPError: Serve has opened the replica's port in another way than the one replaced here.
        """
        flush_log()
        if not _bound:
            raise _unsupported("its replicas may listen on all interfaces")
        if (own := getattr(super(), "check_health", None)) is not None:
            own()


def http_host() -> str:
    """The address that Serve's proxies listen on."""
    client: Any = _get_global_client()
    return str(client.http_config.host)


def running_replicas(application: str) -> dict[str, int]:
    """Returns the number of running replicas by deployment."""
    deployments = serve.status().applications[application].deployments
    return {name: status.replica_states.get(ReplicaState.RUNNING, 0) for name, status in deployments.items()}
