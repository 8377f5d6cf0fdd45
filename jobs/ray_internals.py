"""Private names of Ray that the jobs use. Its public equivalents need the dashboard, which a cluster may lack."""

from __future__ import annotations

from typing import Any

from ray._private import state


def free_resources() -> dict[str, dict[str, float]]:
    """Available resources by node id and by Ray's name of the resource."""
    found: dict[str, dict[str, float]] = state.available_resources_per_node()
    return found


def has_a_process(actor: Any) -> bool:
    """Whether Ray has given the actor its resources; its process may still be starting."""
    return bool(state.actors(actor._actor_id.hex()).get("Pid"))
