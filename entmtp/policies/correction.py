"""A policy whose choices follow what steps really cost on this machine, and find out where that is unknown."""

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

PERIOD = 16
"""Steps between looks at whether the policy is still right."""

TOLERANCE = 0.05
"""Relative change of one size's cost against another's that is worth a new policy, or a probe."""

EXPLORER_PERIOD = 256
"""Steps after which probes are priced anew, whatever was learnt: what is not tried becomes less certain."""

SAVE_PERIOD = 2000
"""Steps after which what was learnt is written to disk."""


class OnlineCostPolicy(Policy):
    """Another policy at live costs, and in a probe at the least that steps may cost."""

    def __init__(
        self, make: Callable[[PolicyCost], Policy], machine: MachineCost, cache: CostCorrectionFile | None = None
    ) -> None:
        """``make`` makes the policy from step costs; ``cache`` keeps for the next run what this one learns."""
        self._make = make
        self._cache = cache
        self._machine = OnlineCosts(machine, cache.read() if cache else {})
        self._budget = ProbeBudget()
        self._steps = 0
        self._context = TYPICAL_CONTEXT
        self._looked = self._forbidden = False
        self._expected = 0.0
        self._last: list[Choice] = []
        self._shapes: dict[int, np.ndarray] = {}
        self._explorer: Policy | None = None
        self.policy = self._renewed(optimistic=False)
        self.entropy_window = self.policy.entropy_window

    def _renewed(self, *, optimistic: bool) -> Policy:
        return self._make(OnlinePolicyCost(self._machine, optimistic))

    def start(self) -> Any:
        return self.policy.start()

    def choose(
        self, signals: Sequence[Signals], states: Sequence[Any], limits: Sequence[int], begin: BeginDraft
    ) -> list[Choice]:
        self._forbidden = not any(limits)
        self._context = rounded_context([seen.context for seen in signals])
        self._looked = self._budget.due and not self._forbidden
        chosen = (self._exploring if self._looked else self.policy).choose(signals, states, limits, begin)
        biases = [state for state in states if isinstance(state, AcceptanceBias)]
        self._expected = len(biases) + sum(bias.expected or 0.0 for bias in biases)
        self._last = chosen
        return chosen

    @property
    def _exploring(self) -> Policy:
        if self._explorer is None:
            self._explorer = self._renewed(optimistic=True)
        return self._explorer

    @property
    def predicted_goodput(self) -> float | None:
        if not self._expected:
            return None
        cost = self._machine.of(len(self._last)).at(self._context)
        return self._expected / cost(_widest([one.topology for one in self._last]))

    def observe(self, topologies: Sequence[Topology], ms: Mapping[str, float]) -> None:
        if self._forbidden:  # nothing was chosen: such a step takes no longer than plain decoding
            return
        batch, tree, took = len(topologies), _widest(topologies), sum(ms.values())
        online = self._machine.of(batch)
        if batch not in self._shapes:
            self._shapes[batch] = online.shape
        least = online.optimistic(self._context)(tree)
        probed = self._looked and least < (1 - TOLERANCE) * online.at(self._context)(tree)
        self._budget.spend(took, took - least if probed else None)
        online.observe(tree, self._context, took - ms["draft"], ms["draft"])
        self._steps += 1
        if probed or self._steps % EXPLORER_PERIOD == 0:
            self._reprice_explorer()
        if self._steps % PERIOD == 0 and np.abs(online.shape - self._shapes[batch]).max() > TOLERANCE:
            self._reprice()
        if self._steps % SAVE_PERIOD == 0:
            self.close()

    def close(self) -> None:
        if self._cache is not None and self._steps:
            self._cache.write(self._machine.learnt)

    def _reprice(self) -> None:
        self._shapes.clear()
        self._reprice_explorer()
        if not self.policy.reprice():
            self.policy = self._renewed(optimistic=False)

    def _reprice_explorer(self) -> None:
        if self._explorer is not None and not self._explorer.reprice():
            self._explorer = None


def _widest(topologies: Sequence[Topology]) -> Topology:
    """The tree that all of a step's are padded to."""
    return max(topologies, key=lambda tree: (tree.nodes, tree.max_depth))
