"""Policies whose trees do not depend on the signals: one tree for all steps, or trees fixed beforehand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache, partial

from entmtp.policies.base import RequestPolicy
from entmtp.policies.ladder import best_static
from entmtp.policies.policy_cost import PolicyCost, cached_at
from entmtp.policies.registry import PolicyInputs, register_policy
from entmtp.policies.signals import Signals
from entmtp.trees.bank import MAX_NODES, TreeBank
from entmtp.trees.published import published_tree
from entmtp.trees.topology import Topology


class StaticPolicy(RequestPolicy):
    """One given tree for every step, such as plain decoding and the published tree; truncated under a limit."""

    def __init__(self, topology: Topology, entropy_window: int) -> None:
        self.entropy_window = entropy_window
        self.max_nodes = topology.nodes
        self._truncated = cache(topology.truncated)

    def choose_one(self, signals: Signals, state: None, limit: int) -> Topology:
        return self._truncated(limit)


class BestStaticPolicy(RequestPolicy):
    """The bank's best tree for every step, at the current costs; under a limit, its best tree within the limit."""

    def __init__(self, bank: TreeBank, cost: PolicyCost, entropy_window: int) -> None:
        self.cost = cost
        self.entropy_window = entropy_window
        self.max_nodes = max(len(one.paths) for one in bank.by_depth)
        self._best = cached_at(cost, partial(best_static, bank, cost))

    def choose_one(self, signals: Signals, state: None, limit: int) -> Topology:
        best = self._best(MAX_NODES)
        return best if best.nodes <= limit else self._best(limit)


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
        self.max_nodes = max((tree.nodes for tree in sequence), default=0)

    def start(self) -> list[int]:
        return [0]

    def choose_one(self, signals: Signals, state: list[int], limit: int) -> Topology:
        state[0] += 1
        return self.sequence[(state[0] - 1) % len(self.sequence)].truncated(limit)


@register_policy("autoregressive", by_cost=False, by_bank=False)
def _autoregressive(inputs: PolicyInputs) -> StaticPolicy:
    return StaticPolicy(Topology.root_only(), inputs.entropy_window)


@register_policy("published", by_cost=False, by_bank=False)
def _published(inputs: PolicyInputs) -> StaticPolicy:
    return StaticPolicy(published_tree(inputs.num_heads), inputs.entropy_window)


@register_policy("chain", by_cost=False, by_bank=False)
def _chain(inputs: PolicyInputs) -> StaticPolicy:
    chain = Topology.of([(0,) * depth for depth in range(1, inputs.num_heads + 1)])
    return StaticPolicy(chain, inputs.entropy_window)


@register_policy("best-static")
def _best_static(inputs: PolicyInputs) -> BestStaticPolicy:
    return BestStaticPolicy(inputs.needs_bank(), inputs.needs_cost(), inputs.entropy_window)


@register_policy("always-big", by_cost=False)
def _always_big(inputs: PolicyInputs) -> StaticPolicy:
    return StaticPolicy(inputs.needs_bank().overall.trees[-1], inputs.entropy_window)
