"""Online step costs: measured once, then corrected by the times of real steps, with probes of uncertain tree sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from entmtp.policies.cost_cache import CostCorrectionFile
from entmtp.policies.cost_filter import CorrectedCost, CostFilter
from entmtp.policies.policy_cost import PolicyCost
from entmtp.policies.probing import ProbeBudget
from entmtp.policies.step_cost import TYPICAL_CONTEXT, BatchedCost, widest
from entmtp.trees.topology import Topology

CHECK_PERIOD = 16
"""Steps between checks whether costs have changed enough for a new version."""

TOLERANCE = 0.05
"""Relative change of one tree size's cost against another's above which there is a new version, or a probe counts."""

PROBE_PERIOD = 256
"""Steps after which optimistic costs get a new version in any case: unused tree sizes become less certain with time."""

SAVE_PERIOD = 2000
"""Steps between writes of the corrections to disk."""


class OnlineStepCost(PolicyCost):
    """Step costs of a machine, those of each batch size corrected by the steps of that many requests.

    In a probe step the costs are optimistic: the least that steps may cost.
    """

    def __init__(self, measured: BatchedCost, file: CostCorrectionFile | None = None) -> None:
        """``file`` stores the corrections: those of earlier runs are continued."""
        self._measured = measured
        self.padded = measured.padded
        self._file = file
        self._earlier = file.read() if file else {}
        self._filters: dict[int, CostFilter] = {}
        self._shapes: dict[int, np.ndarray] = {}
        self._budget = ProbeBudget()
        self._steps = 0
        self._context = TYPICAL_CONTEXT
        self._drafts, self._probing = True, False
        self._corrected_version = self._optimistic_version = 0

    @property
    def version(self) -> tuple[bool, int]:
        return self._probing, self._optimistic_version if self._probing else self._corrected_version

    def of_batch(self, batch: int, context: int) -> CorrectedCost:
        costs = self.filter_of(batch)
        return costs.optimistic(context) if self._probing else costs.at(context)

    def filter_of(self, batch: int) -> CostFilter:
        """Return the filter that corrects the costs of ``batch`` requests. Raises as :meth:`of_batch`."""
        if batch not in self._filters:
            self._filters[batch] = CostFilter(self._measured.table(batch), self._earlier.get(batch))
        return self._filters[batch]

    def start_step(self, context: int, *, drafts: bool) -> None:
        self._context, self._drafts = context, drafts
        self._probing = drafts and self._budget.due

    def observe(self, topologies: Sequence[Topology], ms: Mapping[str, float]) -> None:
        if not self._drafts:  # nothing was chosen: such a step takes no longer than plain decoding
            return
        batch, tree, took = len(topologies), widest(topologies), sum(ms.values())
        costs = self.filter_of(batch)
        if batch not in self._shapes:
            self._shapes[batch] = costs.shape
        least = costs.optimistic(self._context)(tree)
        probed = self._probing and least < (1 - TOLERANCE) * costs.at(self._context)(tree)
        self._budget.spend(took, took - least if probed else None)
        costs.observe(tree, self._context, took - ms["draft"], ms["draft"])
        self._probing = False
        self._steps += 1
        changed = self._steps % CHECK_PERIOD == 0 and np.abs(costs.shape - self._shapes[batch]).max() > TOLERANCE
        if changed:
            self._shapes.clear()
            self._corrected_version += 1
        if changed or probed or self._steps % PROBE_PERIOD == 0:
            self._optimistic_version += 1
        if self._steps % SAVE_PERIOD == 0:
            self.save()

    def save(self) -> None:
        """Save the corrections of all batch sizes, if any step was observed."""
        if self._file is not None and self._steps:
            self._file.write({batch: costs.correction for batch, costs in self._filters.items()})
