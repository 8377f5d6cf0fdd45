"""Policies by name: what ``entmtp replay``, benchmarks and services make them from.

A policy registers itself where it is defined, with :func:`register_policy` on a function from :class:`PolicyInputs`.
Every module of :mod:`entmtp.policies` is imported when a policy is first looked up, so a new file needs no other line.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import entmtp.policies
from entmtp import methods
from entmtp.errors import EntMTPError
from entmtp.policies.base import Policy
from entmtp.policies.correction import OnlineCostPolicy
from entmtp.policies.cost_cache import CostCorrectionFile
from entmtp.policies.step_cost import MachineCost, PolicyCost
from entmtp.settings import CalibrationSettings
from entmtp.trees.bank import TreeBank
from entmtp.trees.trace import RankTrace


@dataclass(frozen=True)
class PolicyInputs:
    """What policies are made from. What a policy needs and is not given is a mistake of the caller's.

    Attributes:
        num_heads: levels that the draft heads can guess.
        bank: trees and predictors of the task.
        cost: of steps on the machine; not needed by a policy whose trees are the same at any cost.
        trace: the text itself, for a policy that knows it beforehand.
    """

    num_heads: int = 0
    bank: TreeBank | None = None
    cost: PolicyCost | None = None
    trace: RankTrace | None = None

    @property
    def entropy_window(self) -> int:
        """Steps of the entropy's moving average: the bank's, or the default where none is loaded."""
        return CalibrationSettings().entropy_window if self.bank is None else self.bank.entropy_window

    def needs_bank(self) -> TreeBank:
        """The bank, which the policy can't do without."""
        assert self.bank is not None
        return self.bank

    def needs_cost(self) -> PolicyCost:
        """The cost, which the policy can't do without."""
        assert self.cost is not None
        return self.cost

    def needs_trace(self) -> RankTrace:
        """The text, which the policy can't do without."""
        assert self.trace is not None
        return self.trace


MakePolicy = Callable[[PolicyInputs], Policy]


@dataclass(frozen=True)
class RegisteredPolicy:
    """A policy that can be made by its name.

    Attributes:
        by_cost: its trees depend on what steps cost.
        knows_text: it is made for one text, which it knows beforehand.
        drafts: it asks the heads while it chooses, so that it can only be replayed where they are loaded.
    """

    name: str
    make: MakePolicy
    by_cost: bool
    knows_text: bool
    drafts: bool


_REGISTERED: dict[str, RegisteredPolicy] = {}


def register_policy(
    name: str, *, by_cost: bool = True, knows_text: bool = False, drafts: bool = False
) -> Callable[[MakePolicy], MakePolicy]:
    """Decorator that makes a policy available by ``name``. Raises ValueError for a name that is taken."""

    def register(make: MakePolicy) -> MakePolicy:
        if name in _REGISTERED:
            raise ValueError(f"policy: '{name}' is registered already")
        _REGISTERED[name] = RegisteredPolicy(name, make, by_cost, knows_text, drafts)
        return make

    return register


def find_policy(name: str) -> RegisteredPolicy:
    """The policy of that name. Raises EntMTPError where there is none."""
    _import_all()
    if name not in _REGISTERED:
        raise EntMTPError(f"policy: '{name}' is unknown; choose from {', '.join(_REGISTERED)}")
    return _REGISTERED[name]


def registered_policies() -> list[RegisteredPolicy]:
    """Every policy, in the order of the methods that go by them."""
    _import_all()
    known = methods.policies()
    return sorted(_REGISTERED.values(), key=lambda one: known.index(one.name) if one.name in known else len(known))


def make_policy(name: str, inputs: PolicyInputs) -> Policy:
    """Makes the policy of that name. Raises EntMTPError where there is none."""
    return find_policy(name).make(inputs)


def make_online_cost_policy(
    name: str, inputs: PolicyInputs, machine: MachineCost, learnt: CostCorrectionFile | None = None
) -> OnlineCostPolicy:
    """Makes the policy at this machine's costs, as its own steps correct them; ``inputs`` need none.

    ``learnt`` are the corrections of earlier runs, which this one goes on from and adds to.
    """
    return OnlineCostPolicy(lambda cost: make_policy(name, replace(inputs, cost=cost)), machine, learnt)


@cache
def _import_all() -> None:
    for module in pkgutil.iter_modules(entmtp.policies.__path__, f"{entmtp.policies.__name__}."):
        importlib.import_module(module.name)
