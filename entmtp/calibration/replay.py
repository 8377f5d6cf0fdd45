"""``entmtp replay``: predict policies' speeds on a rank trace, at the step costs of a hardware profile.

With greedy acceptance the text does not depend on the trees. So a policy's steps through a trace are those of a real
run. Only their time is predicted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.table import Column, Table

from entmtp import methods
from entmtp.calibration.policy_replay import ExpansionAt, ReplayedStep, no_heads, replay_steps
from entmtp.calibration.thresholds import retune
from entmtp.errors import EntMTPError
from entmtp.intervals import Estimate, paired_ratio, percent, ratio, ratio_of_sums
from entmtp.policies.base import Policy
from entmtp.policies.hardware_profile import load_profile
from entmtp.policies.policy_cost import FixedCost
from entmtp.policies.registry import PolicyInputs, RegisteredPolicy, registered_policies
from entmtp.policies.step_cost import CostTable, StepCost, TreeCost
from entmtp.trees.bank import TreeBank, load_bank
from entmtp.trees.topology import Topology
from entmtp.trees.trace import RankTrace, load_traces

FLAT = "flat"
GPU_LIKE = "gpu-like"
DYNAMIC = "dynamic"
KNOWN_CHANCES = "known-chances"
"""Yardstick that needs the heads too (:mod:`entmtp.calibration.known_chances_replay`)."""

PolicyForText = Callable[[RankTrace], Policy]
"""Factory of a text's policy; the yardsticks depend on the text."""


@dataclass(frozen=True)
class DecodingSpeed:
    """Speed of a policy on texts.

    Attributes:
        tokens, ms: tokens and milliseconds of each text ``[texts]``.
        steps: steps of all texts together.
        plain_ms: milliseconds of a step of plain decoding.
    """

    tokens: np.ndarray
    ms: np.ndarray
    steps: int
    plain_ms: float

    @property
    def tau(self) -> float:
        """Tokens per step, root included."""
        return float(self.tokens.sum()) / self.steps

    @property
    def speedup(self) -> Estimate:
        """Ratio to plain decoding's speed, with its interval over texts."""
        return ratio_of_sums(self.tokens * self.plain_ms, self.ms)

    def share_of(self, other: DecodingSpeed) -> Estimate:
        """Ratio to another speed on the same texts, which have the same weight, with its interval over texts."""
        return paired_ratio(self.tokens / self.ms, other.tokens / other.ms).estimate()


@dataclass(frozen=True)
class ReplayResult(DecodingSpeed):
    """Speed of a replayed policy, and its ``nodes`` per step without the root."""

    nodes: float


def policies(
    bank: TreeBank,
    cost: TreeCost,
    num_heads: int,
    expanded: TreeCost | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Mapping[str, PolicyForText]:
    """Return a factory for each policy by name; the ladder is tuned at ``cost``.

    A policy that runs the heads while it chooses uses the cost of ``expanded`` trees.
    """
    padded = isinstance(cost, StepCost | CostTable) and cost.padded
    inputs = PolicyInputs(num_heads, retune(bank, cost, say), FixedCost(lambda batch, context: cost, padded))
    drafting_inputs = replace(inputs, cost=FixedCost(lambda batch, context: expanded or cost, padded))
    known = [one for one in registered_policies() if one.name in methods.policies()]
    return {one.name: _policy_of(one, drafting_inputs if one.drafts else inputs) for one in known}


def _policy_of(policy: RegisteredPolicy, inputs: PolicyInputs) -> PolicyForText:
    if policy.knows_text:
        return lambda trace: policy.make(replace(inputs, trace=trace))
    made = policy.make(inputs)
    return lambda trace: made


def replay_policy(
    traces: Sequence[RankTrace], policy_of: PolicyForText, cost: TreeCost, expansions: Sequence[ExpansionAt] = ()
) -> ReplayResult:
    """Replay a policy through every text.

    A policy that runs the heads while it chooses needs ``expansions``, one for each text. Then ``cost`` is that of
    trees that are expanded level by level.
    """
    drafting = expansions or [no_heads] * len(traces)
    runs = [
        replay_steps(trace, policy_of(trace), expansion_at)
        for trace, expansion_at in zip(traces, drafting, strict=True)
    ]
    steps = [step for run in runs for step in run]
    return ReplayResult(
        tokens=np.array([len(trace) for trace in traces]),
        ms=np.array([sum(step_ms(step, cost) for step in run) for run in runs]),
        steps=len(steps),
        plain_ms=cost(Topology.root_only()),
        nodes=sum(step.topology.nodes for step in steps) / len(steps),
    )


def step_ms(step: ReplayedStep, cost: TreeCost) -> float:
    """Milliseconds of a step. Levels that ran while its tree was expanded count even if no node came of them."""
    if not step.levels:
        return cost(step.topology)
    run = Topology.of([(0,) * depth for depth in range(1, step.levels + 1)])
    return cost(step.topology) - cost.draft(step.topology) + cost.draft(run)


def cost_of(profile: str, batch: int = 1, context: int | None = None) -> TreeCost:
    """Step cost on the machine of a hardware profile, or one of the :data:`IDEAL` curves."""
    return IDEAL[profile] if profile in IDEAL else load_profile(profile).cost(batch, context)


def expanded_cost_of(profile: str, batch: int = 1, context: int | None = None) -> TreeCost | None:
    """Step cost for trees that are expanded level by level; None if the profile did not measure it.

    On ideal machines the host takes no time, so that expanding a tree costs the same as filling it.
    """
    return IDEAL[profile] if profile in IDEAL else load_profile(profile).expanded_cost(batch, context)


@dataclass(frozen=True)
class IdealCost:
    """Idealised cost in plain steps: verifying up to ``free_tokens`` costs as much as one token, then it is linear.

    Attributes:
        level: cost of each level of heads, as a fraction of a plain step.
    """

    level: float
    free_tokens: float

    def __call__(self, topology: Topology) -> float:
        return max(1.0, (1 + topology.nodes) / self.free_tokens) + self.draft(topology)

    def draft(self, topology: Topology) -> float:
        return self.level * topology.max_depth


IDEAL = {FLAT: IdealCost(level=0.0, free_tokens=math.inf), GPU_LIKE: IdealCost(level=0.03, free_tokens=64)}
IDEAL_DESCRIPTIONS = {
    FLAT: "a step with any tree costs as much as a plain one and drafting nothing",
    # Heads of a few hundred million weights, output layer included, on a model of 7 billion.
    GPU_LIKE: "verifying up to 64 tokens costs as much as one, and each level of heads 3% of a plain step",
}


def replay_file(
    path: Path,
    bank_path: Path,
    names: Sequence[str],
    cost: TreeCost,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, ReplayResult]:
    """Replay policies on a trace file; ``say`` reports if the bank's ladder is tuned for another machine.

    Raises:
        EntMTPError: for an unknown policy, an unreadable or empty trace or bank, or a trace of other heads than the
            bank's.
    """
    _check(names)
    traces, marks = load_traces(path)
    bank = load_bank(bank_path)
    for field, there in (("heads", bank.provenance.heads_fingerprint), ("model", bank.provenance.model_fingerprint)):
        if (here := marks.get(field, "")) != there:
            raise EntMTPError(
                f"trace: {path} is of {field} {here[:12] or 'unknown'}, the bank is of {there[:12]};"
                " give a trace and a bank that were made together"
            )
    deepest = traces[0].ranks.shape[1]
    bank.check_depth(deepest)
    made = policies(bank, cost, deepest, say=say)
    return {name: replay_policy(traces, made[name], cost) for name in made if name in names}


def replayable() -> list[str]:
    """List the policies that a trace file suffices for: it has the heads' guesses only on the right path."""
    return [one.name for one in registered_policies() if not one.drafts and one.name in methods.policies()]


def _check(names: Sequence[str]) -> None:
    known = replayable()
    for name in names:
        if name in (*methods.policies(), KNOWN_CHANCES) and name not in known:
            raise EntMTPError(
                f"policy: '{name}' expands its trees with the heads, which a trace file lacks;"
                " replay it with 'python -m benchmarks.predict'"
            )
        if name not in known:
            raise EntMTPError(f"policy: '{name}' is unknown; choose from {', '.join(known)}")


def replay_table(found: Mapping[str, ReplayResult], profile: str) -> Table:
    """Build a table with a row per policy; the columns ``of`` a yardstick are the policy's share of its speed."""
    title = f"predicted at the cost of steps of '{profile}'"
    yardsticks = [name for name in methods.yardsticks() if name in found]
    table = Table(
        Column("policy", no_wrap=True),
        "tau",
        "nodes a step",
        "over plain decoding",
        *(Column(f"of {each}", min_width=len(each)) for each in yardsticks),
        title=title,
    )
    for name, one in found.items():
        shares = [percent(one.share_of(found[each])) for each in yardsticks]
        table.add_row(name, f"{one.tau:.2f}", f"{one.nodes:.1f}", ratio(one.speedup), *shares)
    return table
