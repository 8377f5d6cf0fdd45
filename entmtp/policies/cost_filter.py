"""Kalman filter that corrects one batch size's measured step costs by the times of real steps.

Machines drift, and the measurement may have been disturbed. A step's time has two causes of error. One is a factor of
the whole machine, which changes with what else runs there. The other is a factor of its tree size, which may have been
measured wrongly. A Kalman filter (Kalman 1960) over logarithms of factors separates the two. Factors of other sizes
follow, the less the farther they are. The covariance is the uncertainty of each size, which decides about probes.
"""

from __future__ import annotations

import math

import numpy as np

from entmtp.policies.cost_cache import CostCorrection, fingerprint
from entmtp.policies.step_cost import CostTable, StepCost, interpolated
from entmtp.trees.topology import Topology

NOISE = 0.1
"""Standard deviation of the logarithm of one step's time."""

DRAFT_NOISE = 0.3
"""Standard deviation of the logarithm of drafting's time, which depends on more than depth and nodes."""

MAX_CHANGE_PER_STEP = 0.05
"""Maximum change of the logarithm of a step's own time by that step, however disturbed it was."""

CONFIDENCE = 2.0
"""Standard deviations between the corrected cost and the optimistic one."""

# Standard deviations of three factors: the whole machine's, a size's own and drafting's. Initially, and of their change
# in a step.
_INITIAL = (0.2, 0.15, 0.2)
_PER_STEP = (0.02, 0.001, 0.01)
# Standard deviations of the change of sizes and drafting between two runs: the machine may have changed.
_BETWEEN_RUNS = (0.05, 0.1)


class CostFilter:
    """Factors between measured and real step costs at one batch size, learned from the steps of that many requests."""

    def __init__(self, table: CostTable, correction: CostCorrection | None = None) -> None:
        """``correction`` is that of an earlier run; it is ignored if it is of another table."""
        self._table = table
        self._grid = table.costs[0].nodes
        self._near = 0.5 ** np.abs(np.subtract.outer(*[np.arange(len(self._grid))] * 2))
        self._fingerprint = fingerprint(table)
        # Logarithms of the factors and their covariance: the whole machine's first, then those of the node budgets.
        self._logs = np.zeros(1 + len(self._grid))
        machine, size, draft = _INITIAL
        self._covariance = self._covariance_of(machine, max(size, table.spread))
        self._drift = self._covariance_of(*_PER_STEP[:2])
        # Drafting's own factor. It does not update the machine's factor, as it depends on more than depth and nodes.
        self._draft_log, self._draft_variance = 0.0, max(draft, table.spread) ** 2
        self._rows: dict[int, np.ndarray] = {}
        self._last = self._row(0)
        self._at: dict[int, StepCost] = {}
        if correction is not None and correction.table == self._fingerprint:
            self._restore(correction)

    @property
    def correction(self) -> CostCorrection:
        """Correction that another run can start from: all factors but the whole machine's, which is temporary."""
        covariance = self._covariance[1:, 1:]
        return CostCorrection(
            table=self._fingerprint,
            logs=self._logs[1:].tolist(),
            covariance=((covariance + covariance.T) / 2).tolist(),
            draft_log=self._draft_log,
            draft_variance=self._draft_variance,
        )

    def _restore(self, correction: CostCorrection) -> None:
        size, draft = _BETWEEN_RUNS
        self._logs[1:] = correction.logs
        self._covariance[1:, 1:] = np.array(correction.covariance) + size**2 * self._near
        self._draft_log, self._draft_variance = correction.draft_log, correction.draft_variance + draft**2

    def at(self, context: int) -> CorrectedCost:
        """Corrected cost after ``context`` tokens; it follows later corrections."""
        return CorrectedCost(self, self._measured(context))

    def optimistic(self, context: int) -> CorrectedCost:
        """Optimistic cost: the least that steps may cost. The size that was used last counts as certain."""
        return CorrectedCost(self, self._measured(context), CONFIDENCE)

    def observe(self, topology: Topology, context: int, verify_ms: float, draft_ms: float) -> None:
        """Update the factors with one step: the milliseconds of its drafting, and of everything else."""
        measured = self._measured(context)
        nodes = measured.computed_nodes(topology.nodes)
        self._last = self._row(nodes)
        self._update(self._last, verify_ms / measured.without_draft(nodes))
        if nodes:
            self._update_draft(draft_ms / measured.draft(topology))

    def size_factor(self, nodes: int, deviations: float = 0.0) -> float:
        """Factor of a step's time without drafting, minus ``deviations`` standard deviations of its logarithm."""
        row = self._row(nodes)
        log = float(row @ self._logs)
        if deviations:
            # The machine's factor is common to all sizes, so only the difference from the last size is uncertain.
            difference = row - self._last
            log -= deviations * math.sqrt(max(0.0, float(difference @ self._covariance @ difference)))
        return math.exp(log)

    def draft_factor(self, deviations: float = 0.0) -> float:
        """Factor of drafting's time, minus ``deviations`` standard deviations of its logarithm."""
        return math.exp(float(self._logs[0]) + self._draft_log - deviations * math.sqrt(self._draft_variance))

    @property
    def shape(self) -> np.ndarray:
        """Logarithms of all factors relative to plain decoding's; a choice between trees depends on nothing else."""
        return np.append(self._logs[1:], self._draft_log) - self._logs[1]

    def _measured(self, context: int) -> StepCost:
        if context not in self._at:
            self._at[context] = self._table.at(context)
        return self._at[context]

    def _row(self, nodes: int) -> np.ndarray:
        """Weight of each logarithm in that of a tree's time without drafting ``[1 + sizes]``."""
        if nodes not in self._rows:
            index = interpolated(nodes, self._grid, range(len(self._grid)))
            low = min(int(index), len(self._grid) - 2)
            row = np.zeros(1 + len(self._grid))
            row[0] = 1.0
            row[1 + low : 3 + low] = low + 1 - index, index - low
            self._rows[nodes] = row
        return self._rows[nodes]

    def _covariance_of(self, machine: float, size: float) -> np.ndarray:
        """Covariance ``[1 + sizes, 1 + sizes]`` of machine and sizes from standard deviations; only sizes correlate."""
        covariance = np.zeros((1 + len(self._grid),) * 2)
        covariance[0, 0] = machine**2
        covariance[1:, 1:] = size**2 * self._near
        return covariance

    def _update(self, row: np.ndarray, factor: float) -> None:
        """Kalman update: ``row @ logs`` was measured as the logarithm of ``factor``."""
        self._covariance += self._drift
        with_row = self._covariance @ row
        own = float(row @ with_row)
        surprise = _log(factor) - float(row @ self._logs)
        variance = _variance(surprise, own, NOISE)
        self._logs += with_row * (surprise / variance)
        self._covariance -= np.outer(with_row, with_row) / variance

    def _update_draft(self, factor: float) -> None:
        own = self._draft_variance + _PER_STEP[-1] ** 2
        surprise = _log(factor) - float(self._logs[0]) - self._draft_log
        variance = _variance(surprise, own, DRAFT_NOISE)
        self._draft_log += surprise * own / variance
        self._draft_variance = own - own**2 / variance


def _log(factor: float) -> float:
    return math.log(max(factor, 1e-6))


def _variance(surprise: float, own: float, noise: float) -> float:
    """Variance of a step's measurement.

    A step that would change the factors too much counts as noisier. Then it changes them less, and lowers their
    uncertainty less.
    """
    return max(own + noise**2, abs(surprise) * own / MAX_CHANGE_PER_STEP)


class CorrectedCost:
    """Step cost at one batch size and context, with the current factors of a :class:`CostFilter`."""

    def __init__(self, costs: CostFilter, measured: StepCost, deviations: float = 0.0) -> None:
        self._costs = costs
        self._measured = measured
        self._deviations = deviations

    def __call__(self, topology: Topology) -> float:
        """Milliseconds of a step with this tree."""
        nodes = self._measured.computed_nodes(topology.nodes)
        factor = self._costs.size_factor(nodes, self._deviations)
        return factor * self._measured.without_draft(topology.nodes) + self.draft(topology)

    def draft(self, topology: Topology) -> float:
        """Milliseconds of drafting this tree."""
        if not topology.nodes:
            return 0.0
        return self._costs.draft_factor(self._deviations) * self._measured.draft(topology)
