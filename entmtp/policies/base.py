"""Interface of policies, which choose the draft tree of each request in a step.

A policy stores nothing about a request. All of that is in the request's own state (:meth:`Policy.start`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from entmtp.heads.interface import Expansion
from entmtp.policies.policy_cost import PolicyCost
from entmtp.policies.signals import Signals
from entmtp.policies.step_cost import rounded_context
from entmtp.trees.bank import MAX_NODES
from entmtp.trees.topology import Topology


@dataclass(frozen=True)
class Choice:
    """Tree of one request for one step.

    Attributes:
        tokens: tokens of the nodes in the topology's order, if the heads drafted them while the tree was chosen. If
            None, the heads fill the tree afterwards.
    """

    topology: Topology
    tokens: list[int] | None = None


BeginDraft = Callable[[Sequence[int]], Expansion]
"""Starts drafting after the roots of some of the step's requests, for trees that are expanded level by level."""


class Policy(ABC):
    """Chooses the topologies of all running requests for the next step together, since they share its time.

    Attributes:
        entropy_window: window of the entropy's moving average, in steps.
        max_nodes: nodes of the largest tree that it may ever choose, whatever a request allows. An engine reserves
            cache rows for so many.
        cost: step costs that the choice reads and the policy's own steps correct; None if its trees depend on none.
        is_undrafted: whether no tree may have a node, whatever else can guess.
    """

    entropy_window: int
    max_nodes: int = MAX_NODES
    cost: PolicyCost | None = None
    is_undrafted = False

    def start(self) -> Any:
        """Create the state of a new request; a shallow copy of it is independent. None if the policy has no state."""
        return None

    @abstractmethod
    def choose(
        self, signals: Sequence[Signals], states: Sequence[Any], limits: Sequence[int], begin: BeginDraft
    ) -> list[Choice]:
        """Choose the tree of each request for this step; may update ``states``.

        ``limits`` are the maximum nodes of each request's tree. The heads don't run for a request with limit 0. Either
        all of the trees are filled with tokens or none is.

        A policy that reads costs calls :meth:`PolicyCost.start_step` first.
        """

    @property
    def predicted_goodput(self) -> float | None:
        """Predicted tokens per millisecond of the last choice; None if the policy makes no prediction."""
        return None

    def observe(self, topologies: Sequence[Topology], ms: Mapping[str, float]) -> None:
        """Correct the costs by the milliseconds of each part of the last step, with these trees."""
        if self.cost is not None:
            self.cost.observe(topologies, ms)

    def close(self) -> None:
        """Save the corrections of the costs for the next run."""
        if self.cost is not None:
            self.cost.save()


class RequestPolicy(Policy):
    """Policy that chooses each request's tree independently of the others."""

    def choose(
        self, signals: Sequence[Signals], states: Sequence[Any], limits: Sequence[int], begin: BeginDraft
    ) -> list[Choice]:
        if self.cost is not None:
            self.cost.start_step(rounded_context([signal.context for signal in signals]), drafts=any(limits))
        return [Choice(self.choose_one(*request)) for request in zip(signals, states, limits, strict=True)]

    @abstractmethod
    def choose_one(self, signals: Signals, state: Any, limit: int) -> Topology:
        """Choose the tree of one request, of at most ``limit`` nodes; may update ``state``."""


class UndraftedPolicy(Policy):
    """Wraps another policy in a step in which nothing may be drafted; that policy's states are still updated."""

    is_undrafted = True

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self.entropy_window = policy.entropy_window

    def choose(
        self, signals: Sequence[Signals], states: Sequence[Any], limits: Sequence[int], begin: BeginDraft
    ) -> list[Choice]:
        return self._policy.choose(signals, states, [0] * len(limits), begin)
