"""Interface of policies, which choose the trees of a step.

A policy is stateless: what it remembers of a request lives in the request's own state.
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
    """A request's tree for a step.

    Attributes:
        tokens: of its nodes in the topology's order, where heads guessed them while the tree was chosen; else None,
            and the heads fill the tree afterwards.
    """

    topology: Topology
    tokens: list[int] | None = None


BeginDraft = Callable[[Sequence[int]], Expansion]
"""Begins to draft behind the roots of some of the step's requests, for trees that are chosen while they grow."""


class Policy(ABC):
    """Chooses the topologies of the running requests' next step, of all at once: they share its time."""

    entropy_window: int

    def start(self) -> Any:
        """A fresh per-request state, which a shallow copy separates; None where nothing is remembered."""
        return None

    @abstractmethod
    def choose(
        self, signals: Sequence[Signals], states: Sequence[Any], limits: Sequence[int], begin: BeginDraft
    ) -> list[Choice]:
        """The tree of each request for this step; may update ``states``.

        ``limits`` are the most nodes that each request's tree may have: its best tree within that is chosen. The heads
        don't run for a request with limit 0. Either all of the trees are filled with tokens or none is.
        """

    @property
    def predicted_goodput(self) -> float | None:
        """Tokens per millisecond that the last choice should gain; None where a policy does not say."""
        return None

    def observe(self, topologies: Sequence[Topology], ms: Mapping[str, float]) -> None:
        """Learns what a step with these trees took, by its parts; most policies need not know."""
        return

    def close(self) -> None:
        """Keeps for the next run what this one has learnt; most policies learn nothing."""
        return

    def reprice(self) -> bool:
        """Takes in that the costs which it was made from have changed; False where it has to be made anew for that."""
        return False


class RequestPolicy(Policy):
    """One that looks at each request by itself."""

    def choose(
        self, signals: Sequence[Signals], states: Sequence[Any], limits: Sequence[int], begin: BeginDraft
    ) -> list[Choice]:
        return [Choice(self.choose_one(*request)) for request in zip(signals, states, limits, strict=True)]

    @abstractmethod
    def choose_one(self, signals: Signals, state: Any, limit: int) -> Topology:
        """The tree of one request, of at most ``limit`` nodes; may update ``state``."""


class UndraftedPolicy(Policy):
    """Another policy in a step in which nothing may be drafted, which it takes in as its own choice."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self.entropy_window = policy.entropy_window

    def choose(
        self, signals: Sequence[Signals], states: Sequence[Any], limits: Sequence[int], begin: BeginDraft
    ) -> list[Choice]:
        return self._policy.choose(signals, states, [0] * len(limits), begin)
