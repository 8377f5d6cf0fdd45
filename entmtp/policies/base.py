"""Interface of policies, which choose the draft tree of each request in a step.

A policy stores nothing about a request. All of that is in the request's own state (:meth:`Policy.start`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from entmtp.heads.interface import Expansion
from entmtp.policies.signals import Signals
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
    """Chooses the topologies of all running requests for the next step together, since they share its time."""

    entropy_window: int

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
        """

    @property
    def predicted_goodput(self) -> float | None:
        """Predicted tokens per millisecond of the last choice; None if the policy makes no prediction."""
        return None

    def observe(self, topologies: Sequence[Topology], ms: Mapping[str, float]) -> None:
        """Take in the milliseconds of each part of a step with these trees. By default nothing is learned."""
        return

    def close(self) -> None:
        """Save what this run has learned for the next one. By default there is nothing to save."""
        return

    def reprice(self) -> bool:
        """Drop prices cached from step costs, which have changed. Returns False if the policy must be rebuilt."""
        return False


class RequestPolicy(Policy):
    """Policy that chooses each request's tree independently of the others."""

    def choose(
        self, signals: Sequence[Signals], states: Sequence[Any], limits: Sequence[int], begin: BeginDraft
    ) -> list[Choice]:
        return [Choice(self.choose_one(*request)) for request in zip(signals, states, limits, strict=True)]

    @abstractmethod
    def choose_one(self, signals: Signals, state: Any, limit: int) -> Topology:
        """Choose the tree of one request, of at most ``limit`` nodes; may update ``state``."""


class UndraftedPolicy(Policy):
    """Wraps another policy in a step in which nothing may be drafted; that policy's states are still updated."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self.entropy_window = policy.entropy_window

    def choose(
        self, signals: Sequence[Signals], states: Sequence[Any], limits: Sequence[int], begin: BeginDraft
    ) -> list[Choice]:
        return self._policy.choose(signals, states, [0] * len(limits), begin)
