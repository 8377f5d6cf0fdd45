"""The cost of a step, corrected by what steps really take.

Machines drift, contexts grow, and the first measurement may have been disturbed. What a step took says something of the
whole machine's pace, which comes and goes with what else runs there, and something of trees of its size, which were
measured wrong or not: a Kalman filter (Kalman 1960) over logarithms of factors tells the two apart. Trees of other
sizes follow the less the farther they are. When trees no longer compare as before, the policy takes it in.
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

PERIOD = 16
"""Steps between looks at whether the policy is still right."""

TOLERANCE = 0.05
"""Relative change of one size's cost against another's that is worth a new policy."""

NOISE = 0.1
"""Standard deviation of one step's time, of its logarithm."""

MOST_PER_STEP = 0.05
"""What one step may change of the logarithm of its own time at most, however disturbed it was."""

WINDOW = 16
"""Steps that drafting's own factor averages over."""

_PACE, _SIZES = 0, 1
# Standard deviations of the pace and of a size's own factor: at first, and of their change in a step.
_AT_FIRST = (0.2, 0.1)
_PER_STEP = (0.02, 0.001)


class CorrectedCost:
    """A measured cost and what was seen since."""

    def __init__(self, cost: StepCost) -> None:
        self._cost = cost
        places = np.arange(len(cost.nodes))
        near = 0.5 ** np.abs(np.subtract.outer(places, places))
        # Logarithms of factors: of all times, and of each node budget of the grid; and how far they may be off.
        self._logs = np.zeros(_SIZES + len(places))
        self._covariance, self._drift = (_covariance(*deviations, near) for deviations in (_AT_FIRST, _PER_STEP))
        self._draft = 0.0  # of drafting, besides that of all times
        self._of_sizes: dict[int, np.ndarray] = {}

    def __call__(self, topology: Topology) -> float:
        """Corrected milliseconds of a step with this tree."""
        factor = math.exp(float(self._of_size(topology.nodes) @ self._logs))
        return factor * self._cost.but_draft(topology.nodes) + self.draft(topology)

    def draft(self, topology: Topology) -> float:
        """Corrected milliseconds of filling this tree."""
        return math.exp(self._logs[_PACE] + self._draft) * self._cost.draft(topology)

    def observe(self, topology: Topology, verify_ms: float, draft_ms: float) -> None:
        """Learns from one step: the milliseconds of its drafting, and of all else."""
        self._learn(self._of_size(topology.nodes), verify_ms / self._cost.but_draft(topology.nodes))
        if topology.nodes:
            surprise = _log(draft_ms / self._cost.draft(topology)) - self._logs[_PACE] - self._draft
            self._draft += _little(surprise / WINDOW)

    @property
    def shape(self) -> np.ndarray:
        """Logarithms of all factors relative to plain decoding's: what a choice between trees depends on."""
        return np.append(self._logs[_SIZES:], self._draft) - self._logs[_SIZES]

    def _of_size(self, nodes: int) -> np.ndarray:
        """How much of each logarithm is in that of a tree's time but drafting."""
        if nodes not in self._of_sizes:
            grid = self._cost.nodes
            place = float(np.interp(nodes, grid, np.arange(len(grid))))
            low = min(int(place), len(grid) - 2)
            self._of_sizes[nodes] = row = np.zeros(len(self._logs))
            row[_PACE] = 1.0
            row[_SIZES + low : _SIZES + low + 2] = low + 1 - place, place - low
        return self._of_sizes[nodes]

    def _learn(self, row: np.ndarray, factor: float) -> None:
        """Takes in that ``row @ logs`` was seen to be the logarithm of ``factor``."""
        self._covariance += self._drift
        with_row = self._covariance @ row
        own = float(row @ with_row)
        surprise = _log(factor) - float(row @ self._logs)
        self._logs += with_row / own * _little(surprise * own / (own + NOISE**2))
        self._covariance -= np.outer(with_row, with_row) / (own + NOISE**2)


def _covariance(pace: float, size: float, near: np.ndarray) -> np.ndarray:
    """Covariance ``[1 + sizes, 1 + sizes]`` of the pace and the sizes' own factors, from standard deviations.

    The pace is independent of the sizes; ``near [sizes, sizes]`` is how the sizes correlate.
    """
    covariance = np.zeros((_SIZES + len(near),) * 2)
    covariance[_PACE, _PACE] = pace**2
    covariance[_SIZES:, _SIZES:] = size**2 * near
    return covariance


def _log(factor: float) -> float:
    return math.log(max(factor, 1e-6))


def _little(change: float) -> float:
    return max(-MOST_PER_STEP, min(MOST_PER_STEP, change))


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
    """Another policy, which follows when the costs that it was made from turn out to be others."""

    def __init__(self, make: Callable[[PolicyCost], Policy], machine: MachineCost) -> None:
        """``make`` makes the policy from the costs of steps."""
        self._make = make
        self._machine = CorrectedMachine(machine)
        self._steps = 0
        self._expected = 0.0
        self._last: list[Choice] = []
        self._shapes: dict[int, np.ndarray] = {}
        self._renew()

    def _renew(self) -> None:
        self.policy = self._make(self._machine)
        self.entropy_window = self.policy.entropy_window

    def start(self) -> Any:
        return self.policy.start()

    def choose(
        self, signals: Sequence[Signals], states: Sequence[Any], limits: Sequence[int], begin: BeginDraft
    ) -> list[Choice]:
        chosen = self.policy.choose(signals, states, limits, begin)
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
        if batch not in self._shapes:
            self._shapes[batch] = cost.shape
        cost.observe(_widest(topologies), sum(ms.values()) - ms["draft"], ms["draft"])
        self._steps += 1
        if self._steps % PERIOD == 0 and np.abs(cost.shape - self._shapes[batch]).max() > TOLERANCE:
            self._reprice()

    def _reprice(self) -> None:
        self._shapes.clear()
        if not self.policy.reprice():
            self._renew()


def _widest(topologies: Sequence[Topology]) -> Topology:
    """The tree that all of a step's are padded to."""
    return max(topologies, key=lambda tree: (tree.nodes, tree.max_depth))
