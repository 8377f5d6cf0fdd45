"""The cost of a step, corrected by what steps really take.

Machines drift, contexts grow, and the first measurement may have been disturbed. Each step moves the foretold time of
trees of its size towards what was seen, in logarithms and by little, so that one disturbed step says little; trees of
other sizes follow the less the farther they are. When trees no longer compare as before, the policy is made anew.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from entmtp.scheduling.belief import Belief
from entmtp.scheduling.cost import MachineCost, PolicyCost, StepCost
from entmtp.scheduling.policies import BeginDraft, Choice, Policy
from entmtp.scheduling.signals import Signals
from entmtp.trees.topology import Topology

WINDOW = 32
"""Steps that a correction averages over."""

PERIOD = 64
"""Steps between looks at whether the policy is still right."""

TOLERANCE = 0.05
"""Relative change of one size's cost against another's that is worth a new policy."""

_MOST = math.log(4)


class CorrectedCost:
    """A measured cost and what was seen since."""

    def __init__(self, cost: StepCost) -> None:
        self._cost = cost
        self._places = np.arange(len(cost.nodes))
        self._verify = np.zeros(len(cost.nodes))  # logarithms of factors, per node budget of the grid
        self._draft = 0.0

    def __call__(self, topology: Topology) -> float:
        """Corrected milliseconds of a step with this tree."""
        factor = math.exp(float(np.interp(topology.nodes, self._cost.nodes, self._verify)))
        return factor * self._verify_ms(topology) + self.draft(topology)

    def draft(self, topology: Topology) -> float:
        """Corrected milliseconds of filling this tree."""
        return math.exp(self._draft) * self._cost.draft(topology)

    def observe(self, topology: Topology, verify_ms: float, draft_ms: float) -> None:
        """Learns from one step: the milliseconds of its drafting, and of all else."""
        place = np.interp(topology.nodes, self._cost.nodes, self._places)
        seen = _log_ratio(verify_ms, self(topology) - self.draft(topology))
        self._verify += 0.5 ** np.abs(self._places - place) * seen / WINDOW
        if topology.nodes:
            self._draft += _log_ratio(draft_ms, self.draft(topology)) / WINDOW

    @property
    def shape(self) -> np.ndarray:
        """Logarithms of all factors relative to plain decoding's: what a choice between trees depends on."""
        return np.append(self._verify, self._draft) - self._verify[0]

    def _verify_ms(self, topology: Topology) -> float:
        return self._cost(topology) - self._cost.draft(topology)


def _log_ratio(seen: float, foretold: float) -> float:
    return max(-_MOST, min(_MOST, math.log(max(seen, 1e-6) / foretold)))


class CorrectedMachine:
    """The costs of steps of any number of requests, each corrected by the steps of so many."""

    def __init__(self, machine: MachineCost) -> None:
        self._machine = machine
        self._costs: dict[int, CorrectedCost] = {}

    def of_batch(self, batch: int) -> CorrectedCost:
        """That of a step of ``batch`` requests; an EntMTPError where nothing is known of so many."""
        if batch not in self._costs:
            self._costs[batch] = CorrectedCost(self._machine.of_batch(batch))
        return self._costs[batch]

    def __call__(self, topology: Topology) -> float:
        """Of one request."""
        return self.of_batch(1)(topology)

    def draft(self, topology: Topology) -> float:
        """Of one request."""
        return self.of_batch(1).draft(topology)


class CorrectingPolicy(Policy):
    """Another policy, made anew when the costs that it was made from turn out to be others."""

    def __init__(self, make: Callable[[PolicyCost], Policy], machine: MachineCost) -> None:
        """``make`` makes the policy from the costs of steps."""
        self._make = make
        self._machine = CorrectedMachine(machine)
        self._steps = 0
        self._expected = 0.0
        self._last: list[Choice] = []
        self._renew()

    def _renew(self) -> None:
        self.policy = self._make(self._machine)
        self.entropy_window = self.policy.entropy_window
        self._shapes: dict[int, np.ndarray] = {}

    def start(self) -> Any:
        return self.policy.start()

    def choose(self, signals: Sequence[Signals], states: Sequence[Any], begin: BeginDraft) -> list[Choice]:
        chosen = self.policy.choose(signals, states, begin)
        beliefs = [state for state in states if isinstance(state, Belief)]
        self._expected = len(beliefs) + sum(belief.expected or 0.0 for belief in beliefs)
        self._last = chosen
        return chosen

    @property
    def foretold(self) -> float | None:
        if not self._expected:
            return None
        return self._expected / self._machine.of_batch(len(self._last))(_widest([one.topology for one in self._last]))

    def observe(self, topologies: Sequence[Topology], ms: Mapping[str, float]) -> None:
        batch = len(topologies)
        cost = self._machine.of_batch(batch)
        self._shapes.setdefault(batch, cost.shape)
        cost.observe(_widest(topologies), sum(ms.values()) - ms["draft"], ms["draft"])
        self._steps += 1
        if self._steps % PERIOD == 0 and np.abs(cost.shape - self._shapes[batch]).max() > TOLERANCE:
            self._renew()


def _widest(topologies: Sequence[Topology]) -> Topology:
    """The tree that all of a step's are padded to."""
    return max(topologies, key=lambda tree: (tree.nodes, tree.max_depth))
