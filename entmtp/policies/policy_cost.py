"""Interface of the step costs that policies read at every choice, and costs that never change."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import lru_cache
from typing import TypeVar, TypeVarTuple

from entmtp.policies.step_cost import TYPICAL_CONTEXT, TreeCost
from entmtp.trees.topology import Topology

CACHE_SIZE = 256
"""Results that are cached for each function of :func:`cached_at`."""

Args = TypeVarTuple("Args")
Result = TypeVar("Result")


class PolicyCost(ABC):
    """Step costs by batch size and context. By default steps don't correct them.

    Attributes:
        padded: whether trees are padded, so that a few sizes cost no more than all smaller ones of their width
            (:class:`~entmtp.policies.step_cost.StepCost`).
    """

    padded: bool = False

    @property
    def version(self) -> Hashable:
        """Value that is another one after costs have changed so much that choices may differ."""
        return 0

    @abstractmethod
    def of_batch(self, batch: int, context: int) -> TreeCost:
        """Cost for ``batch`` requests of ``context`` tokens each. Raises EntMTPError beyond what was measured."""

    def __call__(self, topology: Topology) -> float:
        """Milliseconds of a step of one request at :data:`TYPICAL_CONTEXT`."""
        return self.of_batch(1, TYPICAL_CONTEXT)(topology)

    def start_step(self, context: int, *, drafts: bool) -> None:
        """Prepare the costs of a step after ``context`` tokens; ``drafts`` is whether it may have any tree."""
        return

    def observe(self, topologies: Sequence[Topology], ms: Mapping[str, float]) -> None:
        """Take in the milliseconds of each part of the step that was started, with these trees."""
        return

    def save(self) -> None:
        """Save what steps have corrected for the next run."""
        return


class FixedCost(PolicyCost):
    """Costs that no step corrects: those of a replay, or of a benchmark whose trees must not depend on its times."""

    def __init__(self, of_batch: Callable[[int, int], TreeCost], padded: bool = False) -> None:
        """``of_batch`` and ``padded`` are as in :class:`PolicyCost`."""
        self._of_batch = of_batch
        self.padded = padded

    def of_batch(self, batch: int, context: int) -> TreeCost:
        return self._of_batch(batch, context)


def cached_at(cost: PolicyCost, compute: Callable[[*Args], Result]) -> Callable[[*Args], Result]:
    """Cache what ``compute`` derives from ``cost``, for as long as the cost's version stays the same.

    Results at several versions stay cached, since probes alternate between two.
    """

    @lru_cache(CACHE_SIZE)
    def at_version(version: Hashable, *args: *Args) -> Result:
        return compute(*args)

    return lambda *args: at_version(cost.version, *args)
