"""Step costs for tests of policies: formulas, and costs whose version a test changes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from entmtp.policies.policy_cost import PolicyCost
from entmtp.policies.step_cost import TreeCost
from entmtp.trees.topology import Topology


@dataclass(frozen=True)
class LinearCost:
    """Milliseconds of a step that rise by the same for every node and for every level."""

    plain: float
    per_node: float
    per_level: float = 0.0

    def __call__(self, topology: Topology) -> float:
        return self.plain + self.per_node * topology.nodes + self.draft(topology)

    def draft(self, topology: Topology) -> float:
        return self.per_level * topology.max_depth


class ChangingCost(PolicyCost):
    """A cost by batch size and context that a test replaces, and whose version it sets."""

    version = 0

    def __init__(self, current: Callable[[int, int], TreeCost]) -> None:
        self.current = current

    def of_batch(self, batch: int, context: int) -> TreeCost:
        return self.current(batch, context)
