"""A policy at online step costs: it follows the measured times of its own steps and probes uncertain tree sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from entmtp.policies.acceptance_bias import AcceptanceBias
from entmtp.policies.base import BeginDraft, Choice, Policy
from entmtp.policies.cost_cache import CostCorrectionFile
from entmtp.policies.online_cost import OnlineCosts, OnlinePolicyCost
from entmtp.policies.probing import ProbeBudget
from entmtp.policies.signals import Signals
from entmtp.policies.step_cost import TYPICAL_CONTEXT, MachineCost, PolicyCost, rounded_context
from entmtp.trees.topology import Topology

CHECK_PERIOD = 16
"""Steps between checks whether the policy must be repriced."""

TOLERANCE = 0.05
"""Relative change of one tree size's cost against another's above which the policy is repriced, or a probe counts."""

PROBE_REPRICE_PERIOD = 256
"""Steps after which probes are repriced in any case: the uncertainty of unused tree sizes rises with time."""

SAVE_PERIOD = 2000
"""Steps between writes of the learned corrections to disk."""


class OnlineCostPolicy(Policy):
    """Runs a policy at online costs; in a probe step, at optimistic costs (the least that steps may cost)."""

    def __init__(
        self, make: Callable[[PolicyCost], Policy], machine: MachineCost, cache: CostCorrectionFile | None = None
    ) -> None:
        """``make`` builds the policy from step costs; ``cache`` stores the learned corrections for the next run."""
        self._make = make
        self._cache = cache
        self._costs = OnlineCosts(machine, cache.read() if cache else {})
        self._budget = ProbeBudget()
        self._steps = 0
        self._context = TYPICAL_CONTEXT
        self._probing = self._undrafted = False
        self._expected = 0.0
        self._last: list[Choice] = []
        self._shapes: dict[int, np.ndarray] = {}
        self._built_probe_policy: Policy | None = None
        self.policy = self._build(optimistic=False)
        self.entropy_window = self.policy.entropy_window

    def _build(self, *, optimistic: bool) -> Policy:
        return self._make(OnlinePolicyCost(self._costs, optimistic))

    def start(self) -> Any:
        return self.policy.start()

    def choose(
        self, signals: Sequence[Signals], states: Sequence[Any], limits: Sequence[int], begin: BeginDraft
    ) -> list[Choice]:
        self._undrafted = not any(limits)
        self._context = rounded_context([signal.context for signal in signals])
        self._probing = self._budget.due and not self._undrafted
        chosen = (self._probe_policy if self._probing else self.policy).choose(signals, states, limits, begin)
        biases = [state for state in states if isinstance(state, AcceptanceBias)]
        self._expected = len(biases) + sum(bias.expected or 0.0 for bias in biases)
        self._last = chosen
        return chosen

    @property
    def _probe_policy(self) -> Policy:
        if self._built_probe_policy is None:
            self._built_probe_policy = self._build(optimistic=True)
        return self._built_probe_policy

    @property
    def predicted_goodput(self) -> float | None:
        if not self._expected:
            return None
        cost = self._costs.for_batch(len(self._last)).at(self._context)
        return self._expected / cost(_widest([one.topology for one in self._last]))

    def observe(self, topologies: Sequence[Topology], ms: Mapping[str, float]) -> None:
        if self._undrafted:  # nothing was chosen: such a step takes no longer than plain decoding
            return
        batch, tree, took = len(topologies), _widest(topologies), sum(ms.values())
        online = self._costs.for_batch(batch)
        if batch not in self._shapes:
            self._shapes[batch] = online.shape
        least = online.optimistic(self._context)(tree)
        probed = self._probing and least < (1 - TOLERANCE) * online.at(self._context)(tree)
        self._budget.spend(took, took - least if probed else None)
        online.observe(tree, self._context, took - ms["draft"], ms["draft"])
        self._steps += 1
        if probed or self._steps % PROBE_REPRICE_PERIOD == 0:
            self._reprice_probes()
        if self._steps % CHECK_PERIOD == 0 and np.abs(online.shape - self._shapes[batch]).max() > TOLERANCE:
            self._reprice()
        if self._steps % SAVE_PERIOD == 0:
            self.close()

    def close(self) -> None:
        if self._cache is not None and self._steps:
            self._cache.write(self._costs.corrections)

    def _reprice(self) -> None:
        self._shapes.clear()
        self._reprice_probes()
        if not self.policy.reprice():
            self.policy = self._build(optimistic=False)

    def _reprice_probes(self) -> None:
        if self._built_probe_policy is not None and not self._built_probe_policy.reprice():
            self._built_probe_policy = None


def _widest(topologies: Sequence[Topology]) -> Topology:
    """The tree whose width all trees of a step are padded to."""
    return max(topologies, key=lambda tree: (tree.nodes, tree.max_depth))
