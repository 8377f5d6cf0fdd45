"""Demand for GPUs that makes a cluster's autoscaler start nodes.

The demand is a number of pending placement groups. The autoscaler counts them while they wait, and they end with the
driver, however that ends. A group that was created is removed at once: its node has joined, and a worker takes the GPU.
"""

from __future__ import annotations

from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group

_CREATED = "CREATED"


class AutoscalerDemand:
    """Pending placement groups, each for one worker."""

    def __init__(self, share: dict[str, float]) -> None:
        """``share`` has a worker's resources by Ray's names."""
        self._share = share
        self._groups: list[PlacementGroup] = []

    def set_pending(self, count: int) -> None:
        """Request or remove placement groups until ``count`` are pending."""
        for group in [group for group in self._groups if placement_group_table(group)["state"] == _CREATED]:
            self._remove(group)
        while len(self._groups) > count:
            self._remove(self._groups[-1])
        self._groups += [placement_group([self._share]) for _ in range(count - len(self._groups))]

    def _remove(self, group: PlacementGroup) -> None:
        self._groups.remove(group)
        remove_placement_group(group)
