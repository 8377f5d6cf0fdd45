"""Step cost that follows what steps really take.

Machines drift, and the measurement may have been disturbed. What a step took says something of the whole machine's
pace, which comes and goes with what else runs there, and something of trees of its size, which were measured wrong or
not: a Kalman filter (Kalman 1960) over logarithms of factors tells the two apart. Trees of other sizes follow the less
the farther they are. Its covariance says how far each size may still be off, and so which one is worth a probe.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from entmtp.policies.cost_cache import CostCorrection, fingerprint
from entmtp.policies.step_cost import TYPICAL_CONTEXT, CostTable, MachineCost, StepCost
from entmtp.trees.topology import Topology

NOISE = 0.1
"""Standard deviation of one step's time, of its logarithm."""

DRAFT_NOISE = 0.3
"""The same of drafting alone, whose time depends on more than depth and nodes."""

MOST_PER_STEP = 0.05
"""What one step may change of the logarithm of its own time at most, however disturbed it was."""

CONFIDENCE = 2.0
"""Standard deviations between the corrected cost and the optimistic one."""

# Standard deviations of the pace, of a size's own factor and of drafting's: at first, and of their change in a step.
_AT_FIRST = (0.2, 0.15, 0.2)
_PER_STEP = (0.02, 0.001, 0.01)
# The same of sizes and drafting between two runs: of another day the machine may be another.
_BETWEEN_RUNS = (0.05, 0.1)


class OnlineCost:
    """Step cost at one batch size, corrected by the steps of so many requests."""

    def __init__(self, table: CostTable, learnt: CostCorrection | None = None) -> None:
        """``learnt`` is where an earlier run has got to; of another table it counts for nothing."""
        self._table = table
        self._grid = table.costs[0].nodes
        self._near = 0.5 ** np.abs(np.subtract.outer(*[np.arange(len(self._grid))] * 2))
        self._fingerprint = fingerprint(table)
        # Logarithms of factors, of all times and of each node budget of the grid, and their covariance.
        self._logs = np.zeros(1 + len(self._grid))
        pace, size, draft = _AT_FIRST
        self._covariance = self._covariance_of(pace, max(size, table.spread))
        self._drift = self._covariance_of(*_PER_STEP[:2])
        # Of drafting, besides the pace, which it tells nothing of: it depends on more than depth and nodes.
        self._draft, self._draft_variance = 0.0, max(draft, table.spread) ** 2
        self._last = self._row(0)
        self._at: dict[int, StepCost] = {}
        if learnt is not None and learnt.table == self._fingerprint:
            self._go_on(learnt)

    @property
    def learnt(self) -> CostCorrection:
        """What another run can go on from: all but the pace, which comes and goes."""
        covariance = self._covariance[1:, 1:]
        return CostCorrection(
            table=self._fingerprint,
            logs=self._logs[1:].tolist(),
            covariance=((covariance + covariance.T) / 2).tolist(),
            draft_log=self._draft,
            draft_variance=self._draft_variance,
        )

    def _go_on(self, learnt: CostCorrection) -> None:
        size, draft = _BETWEEN_RUNS
        self._logs[1:] = learnt.logs
        self._covariance[1:, 1:] = np.array(learnt.covariance) + size**2 * self._near
        self._draft, self._draft_variance = learnt.draft_log, learnt.draft_variance + draft**2

    def at(self, context: int) -> CorrectedCost:
        """The corrected cost after ``context`` tokens, read live."""
        return CorrectedCost(self, self._measured(context))

    def optimistic(self, context: int) -> CorrectedCost:
        """What steps may cost at the least: certain of the size that was used last, and of the rest as far as known."""
        return CorrectedCost(self, self._measured(context), CONFIDENCE)

    def observe(self, topology: Topology, context: int, verify_ms: float, draft_ms: float) -> None:
        """Learns from one step: the milliseconds of its drafting, and of all else."""
        measured, nodes = self._measured(context), topology.nodes
        self._last = self._row(nodes)
        self._learn(self._last, verify_ms / measured.without_draft(nodes))
        if nodes:
            self._learn_draft(draft_ms / measured.draft(topology))

    def size_factor(self, nodes: int, deviations: float = 0.0) -> float:
        """Factor of a step's time but drafting, less so many standard deviations."""
        row = self._row(nodes)
        log = float(row @ self._logs)
        if deviations:
            # The pace is common to all, so that only what sets this size apart from the last one is uncertain.
            apart = row - self._last
            log -= deviations * math.sqrt(max(0.0, float(apart @ self._covariance @ apart)))
        return math.exp(log)

    def draft_factor(self, deviations: float = 0.0) -> float:
        """Factor of drafting's time, less so many standard deviations."""
        return math.exp(float(self._logs[0]) + self._draft - deviations * math.sqrt(self._draft_variance))

    @property
    def shape(self) -> np.ndarray:
        """Logarithms of all factors relative to plain decoding's: what a choice between trees depends on."""
        return np.append(self._logs[1:], self._draft) - self._logs[1]

    def _measured(self, context: int) -> StepCost:
        if context not in self._at:
            self._at[context] = self._table.at(context)
        return self._at[context]

    def _row(self, nodes: int) -> np.ndarray:
        """How much of each logarithm is in that of a tree's time but drafting."""
        place = float(np.interp(nodes, self._grid, np.arange(len(self._grid))))
        low = min(int(place), len(self._grid) - 2)
        row = np.zeros(1 + len(self._grid))
        row[0] = 1.0
        row[1 + low : 3 + low] = low + 1 - place, place - low
        return row

    def _covariance_of(self, pace: float, size: float) -> np.ndarray:
        """Covariance ``[1 + sizes, 1 + sizes]`` of pace and sizes from standard deviations; only sizes correlate."""
        covariance = np.zeros((1 + len(self._grid),) * 2)
        covariance[0, 0] = pace**2
        covariance[1:, 1:] = size**2 * self._near
        return covariance

    def _learn(self, row: np.ndarray, factor: float) -> None:
        """Takes in that ``row @ logs`` was seen to be the logarithm of ``factor``."""
        self._covariance += self._drift
        with_row = self._covariance @ row
        own = float(row @ with_row)
        surprise = _log(factor) - float(row @ self._logs)
        variance = _variance(surprise, own, NOISE)
        self._logs += with_row * (surprise / variance)
        self._covariance -= np.outer(with_row, with_row) / variance

    def _learn_draft(self, factor: float) -> None:
        own = self._draft_variance + _PER_STEP[-1] ** 2
        surprise = _log(factor) - float(self._logs[0]) - self._draft
        variance = _variance(surprise, own, DRAFT_NOISE)
        self._draft += surprise * own / variance
        self._draft_variance = own - own**2 / variance


def _log(factor: float) -> float:
    return math.log(max(factor, 1e-6))


def _variance(surprise: float, own: float, noise: float) -> float:
    """Variance of what a step shows.

    One that would change too much is taken for a noisier one: it neither moves nor assures as much.
    """
    return max(own + noise**2, abs(surprise) * own / MOST_PER_STEP)


class CorrectedCost:
    """Step cost at one batch size and context, with the factors that the steps have taught so far."""

    def __init__(self, online: OnlineCost, measured: StepCost, deviations: float = 0.0) -> None:
        self._online = online
        self._measured = measured
        self._deviations = deviations

    def __call__(self, topology: Topology) -> float:
        """Milliseconds of a step with this tree."""
        factor = self._online.size_factor(topology.nodes, self._deviations)
        return factor * self._measured.without_draft(topology.nodes) + self.draft(topology)

    def draft(self, topology: Topology) -> float:
        """Milliseconds of filling this tree."""
        if not topology.nodes:
            return 0.0
        return self._online.draft_factor(self._deviations) * self._measured.draft(topology)


class OnlineCosts:
    """Step costs of a machine by batch size, each corrected by the steps of so many requests."""

    def __init__(self, machine: MachineCost, learnt: Mapping[int, CostCorrection]) -> None:
        """``learnt`` is by batch size what an earlier run has learnt."""
        self._machine = machine
        self._before = learnt
        self._online: dict[int, OnlineCost] = {}

    def of(self, batch: int) -> OnlineCost:
        """Cost for ``batch`` requests. Raises EntMTPError beyond the measured batch sizes."""
        if batch not in self._online:
            self._online[batch] = OnlineCost(self._machine.table(batch), self._before.get(batch))
        return self._online[batch]

    @property
    def learnt(self) -> dict[int, CostCorrection]:
        """What this run has learnt, by batch size."""
        return {batch: online.learnt for batch, online in self._online.items()}


class OnlinePolicyCost:
    """Costs of an :class:`OnlineCosts` as policies are made from them."""

    def __init__(self, machine: OnlineCosts, optimistic: bool) -> None:
        self._machine = machine
        self._optimistic = optimistic

    def of_batch(self, batch: int, context: int) -> CorrectedCost:
        """Cost for ``batch`` requests of ``context`` tokens each. Raises EntMTPError beyond what was measured."""
        online = self._machine.of(batch)
        return online.optimistic(context) if self._optimistic else online.at(context)

    def __call__(self, topology: Topology) -> float:
        """Milliseconds of a step of one request at :data:`TYPICAL_CONTEXT`."""
        return self.of_batch(1, TYPICAL_CONTEXT)(topology)

    def draft(self, topology: Topology) -> float:
        """Milliseconds of filling one request's tree at :data:`TYPICAL_CONTEXT`."""
        return self.of_batch(1, TYPICAL_CONTEXT).draft(topology)
