"""Registry of policies by name, for ``entmtp replay``, benchmarks and services.

A policy registers itself where it is defined, with :func:`register_policy` on a function from :class:`PolicyInputs`.
Every module of :mod:`entmtp.policies` is imported when a policy is first looked up, so a new file needs no other line.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from entmtp import methods
from entmtp.errors import EntMTPError
from entmtp.policies.base import Policy
from entmtp.policies.policy_cost import PolicyCost
from entmtp.settings import CalibrationSettings
from entmtp.submodules import import_submodules
from entmtp.trees.bank import TreeBank
from entmtp.trees.trace import RankTrace


@dataclass(frozen=True)
class PolicyInputs:
    """Inputs that a policy is built from. A missing input that the policy needs is an error of the caller.

    Attributes:
        num_heads: levels that the draft heads can draft.
        bank: trees and predictors of the task.
        cost: step costs of the machine; not needed by a policy whose trees are the same at any cost.
        trace: rank trace of the text, for a policy that knows the text beforehand.
    """

    num_heads: int = 0
    bank: TreeBank | None = None
    cost: PolicyCost | None = None
    trace: RankTrace | None = None

    @property
    def entropy_window(self) -> int:
        """Window of the entropy's moving average in steps: the bank's, or the default if no bank is loaded."""
        return CalibrationSettings().entropy_window if self.bank is None else self.bank.entropy_window

    def needs_bank(self) -> TreeBank:
        """Return the bank, which the policy needs."""
        assert self.bank is not None
        return self.bank

    def needs_cost(self) -> PolicyCost:
        """Return the step cost, which the policy needs."""
        assert self.cost is not None
        return self.cost

    def needs_trace(self) -> RankTrace:
        """Return the rank trace, which the policy needs."""
        assert self.trace is not None
        return self.trace


MakePolicy = Callable[[PolicyInputs], Policy]


@dataclass(frozen=True)
class RegisteredPolicy:
    """Factory of a policy, and its properties.

    Attributes:
        by_cost: whether its trees depend on step costs.
        by_bank: whether its trees depend on a bank.
        knows_text: whether it is built for one text, which it knows beforehand.
        drafts: whether it runs the heads while it chooses, so that a replay needs the heads too.
    """

    name: str
    make: MakePolicy
    by_cost: bool
    by_bank: bool
    knows_text: bool
    drafts: bool


_REGISTERED: dict[str, RegisteredPolicy] = {}


def register_policy(
    name: str, *, by_cost: bool = True, by_bank: bool = True, knows_text: bool = False, drafts: bool = False
) -> Callable[[MakePolicy], MakePolicy]:
    """Decorator that registers a policy under ``name``. Raises ValueError for a name that is taken."""

    def register(make: MakePolicy) -> MakePolicy:
        if name in _REGISTERED:
            raise ValueError(f"policy: '{name}' is registered already")
        _REGISTERED[name] = RegisteredPolicy(name, make, by_cost, by_bank, knows_text, drafts)
        return make

    return register


def find_policy(name: str) -> RegisteredPolicy:
    """Return the policy registered under ``name``. Raises EntMTPError if there is none."""
    import_submodules("entmtp.policies")
    if name not in _REGISTERED:
        raise EntMTPError(f"policy: '{name}' is unknown; choose from {', '.join(_REGISTERED)}")
    return _REGISTERED[name]


def registered_policies() -> list[RegisteredPolicy]:
    """List all policies, in the order of the methods that use them."""
    import_submodules("entmtp.policies")
    known = methods.policies()
    return sorted(_REGISTERED.values(), key=lambda one: known.index(one.name) if one.name in known else len(known))


def make_policy(name: str, inputs: PolicyInputs) -> Policy:
    """Build the policy registered under ``name``. Raises EntMTPError if there is none."""
    return find_policy(name).make(inputs)
