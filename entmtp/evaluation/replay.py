"""``entmtp replay``: what policies would gain on a rank trace, at the cost of steps that a hardware profile names.

With greedy acceptance the text does not depend on the trees, so a policy's steps through a trace are those that it
would take in a real run; only their time is foretold.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.table import Table

from entmtp.errors import EntMTPError
from entmtp.evaluation.intervals import Estimate, ratio_of_sums
from entmtp.evaluation.tuning import retuned
from entmtp.evaluation.verdicts import ratio
from entmtp.scheduling.cost import PartedCost
from entmtp.scheduling.dynamic import DynamicPolicy
from entmtp.scheduling.goodput import GoodputPolicy, candidates
from entmtp.scheduling.policies import Policy, ScheduledPolicy, StaticPolicy, best_static_policy, ladder_policy
from entmtp.scheduling.profiles import load_profile
from entmtp.scheduling.rate import Cost
from entmtp.scheduling.replay import GrowthAt, no_heads, replayed
from entmtp.settings import LadderSettings
from entmtp.trees.bank import TreeBank, load_bank
from entmtp.trees.published import published_tree
from entmtp.trees.replay import best_schedule, right_path_schedule
from entmtp.trees.topology import Topology
from entmtp.trees.trace import RankTrace, load_traces

FLAT = "flat"
GPU_LIKE = "gpu-like"
POLICIES = ("autoregressive", "published", "best-static", "ladder", "goodput", "oracle", "hindsight")
DYNAMIC = "dynamic"
"""The policy that can only be replayed where the heads are loaded."""

PolicyOf = Callable[[RankTrace], Policy]
"""A text's policy; those of the oracle and of hindsight depend on the text."""


@dataclass(frozen=True)
class Replayed:
    """What a policy did on texts.

    Attributes:
        tau: tokens per step, root included.
        nodes: per step, the root not counted.
        ms: of each text ``[texts]``.
        speedup: over plain decoding at the same cost of steps, with its interval over texts.
    """

    tau: float
    nodes: float
    ms: np.ndarray
    speedup: Estimate


def policies(
    bank: TreeBank, cost: PartedCost, num_heads: int, say: Callable[[str], None] = lambda text: None
) -> Mapping[str, PolicyOf]:
    """The policy of each of :data:`POLICIES`, and :data:`DYNAMIC`, the ladder as ``cost`` tunes it."""
    bank, window = retuned(bank, cost, say), bank.entropy_window
    fixed: dict[str, Policy] = {
        "autoregressive": StaticPolicy(Topology.root_only(), window),
        "published": StaticPolicy(published_tree(num_heads), window),
        "best-static": best_static_policy(bank, cost, window),
        "ladder": ladder_policy(bank, cost, LadderSettings().hysteresis),
        "goodput": GoodputPolicy(bank.predictor, lambda batch, context: cost, window),
        DYNAMIC: DynamicPolicy(bank.predictor, bank.chances, lambda batch, context: cost, window),
    }
    trees = all_trees(bank)

    def oracle(trace: RankTrace) -> Policy:
        return ScheduledPolicy(best_schedule(trace, trees, cost)[0], window)

    ranks = 1 + max(max(tree.max_rank, default=0) for tree in [*trees, published_tree(num_heads)])

    def hindsight(trace: RankTrace) -> Policy:
        return ScheduledPolicy(right_path_schedule(trace, cost, ranks)[0], window)

    def always(policy: Policy) -> PolicyOf:
        return lambda trace: policy

    return {name: always(policy) for name, policy in fixed.items()} | {"oracle": oracle, "hindsight": hindsight}


def all_trees(bank: TreeBank) -> list[Topology]:
    """Every tree that any policy of a bank may choose: what the oracle chooses from."""
    static = [tree for one in bank.by_depth for tree in one.trees]
    by_bin = [tree for one in bank.bins for tree, _ in one.choices]
    return list({tree.paths: tree for tree in [*static, *by_bin, *candidates(bank.predictor)]}.values())


def replay_policy(
    traces: Sequence[RankTrace], policy_of: PolicyOf, cost: Cost, growths: Sequence[GrowthAt] = ()
) -> Replayed:
    """Walks every text with its policy; ``growths`` are the heads' guesses in each text, for :data:`DYNAMIC`."""
    drafting = growths or [no_heads] * len(traces)
    runs = [replayed(trace, policy_of(trace), growth_at) for trace, growth_at in zip(traces, drafting, strict=True)]
    ms = np.array([sum(cost(step.topology) for step in run) for run in runs])
    plain = np.array([len(trace) for trace in traces]) * cost(Topology.root_only())
    steps = sum(map(len, runs))
    nodes = sum(step.topology.nodes for run in runs for step in run)
    return Replayed(sum(map(len, traces)) / steps, nodes / steps, ms, ratio_of_sums(plain, ms))


def cost_of(profile: str, batch: int = 1, context: int | None = None) -> PartedCost:
    """The cost of a step on the machine of a hardware profile, or one of the :data:`IDEAL` curves."""
    return IDEAL[profile] if profile in IDEAL else load_profile(profile).cost(batch, context)


@dataclass(frozen=True)
class IdealCost:
    """No machine's: verifying up to ``free_tokens`` takes as long as one, then as long as there are tokens.

    Attributes:
        level: of a plain step, what each level of heads takes.
    """

    level: float
    free_tokens: float

    def __call__(self, topology: Topology) -> float:
        return max(1.0, (1 + topology.nodes) / self.free_tokens) + self.draft(topology)

    def draft(self, topology: Topology) -> float:
        return self.level * topology.max_depth


IDEAL = {FLAT: IdealCost(level=0.0, free_tokens=math.inf), GPU_LIKE: IdealCost(level=0.03, free_tokens=64)}
IDEAL_WORDS = {
    FLAT: "a step with any tree costs as much as a plain one and drafting nothing",
    # Heads of a few hundred million weights, output layer included, on a model of 7 billion.
    GPU_LIKE: "verifying up to 64 tokens costs as much as one, and each level of heads 3% of a plain step",
}


def replay_file(
    path: Path,
    bank_path: Path,
    names: Sequence[str],
    cost: PartedCost,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Replayed]:
    """Replays policies on a trace file; ``say`` tells if the bank's ladder is another machine's.

    Raises:
        EntMTPError: for an unknown policy, an unreadable or empty trace or bank, or a trace of other heads than the
            bank's.
    """
    for name in names:
        if name == DYNAMIC:
            raise EntMTPError(
                "policy: 'dynamic' grows its trees with the heads, which a trace file lacks;"
                " replay it with 'python -m benchmarks.predict'"
            )
        if name not in POLICIES:
            raise EntMTPError(f"policy: '{name}' is unknown; choose from {', '.join(POLICIES)}")
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
    made = policies(bank, cost, deepest, say)
    return {name: replay_policy(traces, made[name], cost) for name in POLICIES if name in names}


def replay_table(found: Mapping[str, Replayed], profile: str) -> Table:
    """A row per policy."""
    title = f"foretold at the cost of steps of '{profile}'"
    table = Table("policy", "tau", "nodes a step", "over plain decoding", "share of the oracle", title=title)
    oracle = found.get("oracle")
    for name, one in found.items():
        share = "" if oracle is None else f"{oracle.ms.sum() / one.ms.sum():.2f}"
        table.add_row(name, f"{one.tau:.2f}", f"{one.nodes:.1f}", ratio(one.speedup), share)
    return table
