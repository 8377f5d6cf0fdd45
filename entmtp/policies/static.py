"""Policies whose trees do not depend on the signals: one tree for all steps, or trees fixed beforehand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache

from entmtp.policies.base import RequestPolicy
from entmtp.policies.ladder import best_static
from entmtp.policies.rate import Cost
from entmtp.policies.registry import PolicyInputs, register_policy
from entmtp.policies.signals import Signals
from entmtp.trees.bank import TreeBank
from entmtp.trees.published import published_tree
from entmtp.trees.topology import Topology


class StaticPolicy(RequestPolicy):
    """One tree for every step: plain decoding, and the published or best constant trees."""

    def __init__(
        self, topology: Topology, entropy_window: int, within: Callable[[int], Topology] | None = None
    ) -> None:
        """``within(nodes)`` finds the best tree of at most that many nodes; by default it is :meth:`Topology.first`."""
        self.topology = topology
        self.entropy_window = entropy_window
        self._within = cache(within or topology.truncated)

    def choose_one(self, signals: Signals, state: None, limit: int) -> Topology:
        return self.topology if self.topology.nodes <= limit else self._within(limit)


class ScheduledPolicy(RequestPolicy):
    """Trees fixed beforehand by text position: the yardsticks, which know the text."""

    def __init__(self, by_position: Mapping[int, Topology], entropy_window: int) -> None:
        self.by_position = by_position
        self.entropy_window = entropy_window

    def choose_one(self, signals: Signals, state: None, limit: int) -> Topology:
        return self.by_position.get(signals.position, Topology.root_only()).truncated(limit)


class SequencePolicy(RequestPolicy):
    """A fixed sequence of trees, which repeats when it ends: the control with another policy's trees in random order.

    The state is a one-element list with the number of steps taken.
    """

    def __init__(self, sequence: Sequence[Topology], entropy_window: int) -> None:
        self.sequence = sequence
        self.entropy_window = entropy_window

    def start(self) -> list[int]:
        return [0]

    def choose_one(self, signals: Signals, state: list[int], limit: int) -> Topology:
        state[0] += 1
        return self.sequence[(state[0] - 1) % len(self.sequence)].truncated(limit)


def best_static_policy(bank: TreeBank, cost: Cost, entropy_window: int) -> StaticPolicy:
    """Policy with the bank's best tree at every step; under a limit, with its best tree within the limit."""
    return StaticPolicy(best_static(bank, cost), entropy_window, lambda nodes: best_static(bank, cost, nodes))


@register_policy("autoregressive", by_cost=False)
def _autoregressive(inputs: PolicyInputs) -> StaticPolicy:
    return StaticPolicy(Topology.root_only(), inputs.entropy_window)


@register_policy("published", by_cost=False)
def _published(inputs: PolicyInputs) -> StaticPolicy:
    return StaticPolicy(published_tree(inputs.num_heads), inputs.entropy_window)


@register_policy("best-static")
def _best_static(inputs: PolicyInputs) -> StaticPolicy:
    return best_static_policy(inputs.needs_bank(), inputs.needs_cost(), inputs.entropy_window)


@register_policy("always-big", by_cost=False)
def _always_big(inputs: PolicyInputs) -> StaticPolicy:
    return StaticPolicy(inputs.needs_bank().overall.trees[-1], inputs.entropy_window)
