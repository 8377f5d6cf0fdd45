"""Makes a cluster's autoscaler start nodes: wishes for GPUs that nobody has yet.

A wish is a placement group, which the autoscaler counts as long as it waits, and which ends with the driver, however
that ends. One that was granted is given back at once: the node is there, and its GPU is for a worker.
"""

from __future__ import annotations

from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group

_GRANTED = "CREATED"


class Demand:
    """ResourceRequest for shares of a node."""

    def __init__(self, share: dict[str, float]) -> None:
        """``share`` are a worker's resources by Ray's names."""
        self._share = share
        self._wishes: list[PlacementGroup] = []

    def keep(self, count: int) -> None:
        """Lets ``count`` wishes wait."""
        for wish in [wish for wish in self._wishes if placement_group_table(wish)["state"] == _GRANTED]:
            self._end(wish)
        while len(self._wishes) > count:
            self._end(self._wishes[-1])
        self._wishes += [placement_group([self._share]) for _ in range(count - len(self._wishes))]

    def _end(self, wish: PlacementGroup) -> None:
        self._wishes.remove(wish)
        remove_placement_group(wish)
