"""Yardsticks: schedules that know the text beforehand, so that no policy can beat them."""

from __future__ import annotations

from entmtp import methods
from entmtp.policies.goodput import candidates
from entmtp.policies.rate import Cost
from entmtp.policies.registry import PolicyInputs, register_policy
from entmtp.policies.static import ScheduledPolicy
from entmtp.trees.bank import TreeBank
from entmtp.trees.published import published_tree
from entmtp.trees.topology import Topology
from entmtp.trees.trace import RankTrace
from entmtp.trees.trace_replay import best_schedule, right_path_schedule


def bank_oracle(trace: RankTrace, bank: TreeBank, cost: Cost) -> ScheduledPolicy:
    """Build the fastest schedule of the bank's trees for a known text.

    The bank's trees contain wrong guesses too. So this is no upper bound of what drafting can gain.
    """
    return ScheduledPolicy(best_schedule(trace, all_trees(bank), cost)[0], bank.entropy_window)


def hindsight(trace: RankTrace, bank: TreeBank, cost: Cost, num_heads: int) -> ScheduledPolicy:
    """Build the schedule that verifies only the right path: the upper bound of what these heads' guesses can gain.

    Its ranks are limited to the largest rank in the bank's trees and the published tree.
    """
    trees = [*all_trees(bank), published_tree(num_heads)]
    ranks = 1 + max(max(tree.max_rank, default=0) for tree in trees)
    return ScheduledPolicy(right_path_schedule(trace, cost, ranks)[0], bank.entropy_window)


def all_trees(bank: TreeBank) -> list[Topology]:
    """List every tree that any policy of a bank may choose; the bank oracle chooses from them."""
    static = [tree for one in bank.by_depth for tree in one.trees]
    by_bin = [tree for one in bank.bins for tree, _ in one.choices]
    return list({tree.paths: tree for tree in [*static, *by_bin, *candidates(bank.predictor)]}.values())


@register_policy(methods.BANK_ORACLE, knows_text=True)
def _bank_oracle(inputs: PolicyInputs) -> ScheduledPolicy:
    return bank_oracle(inputs.needs_trace(), inputs.needs_bank(), inputs.needs_cost())


@register_policy(methods.HINDSIGHT, knows_text=True)
def _hindsight(inputs: PolicyInputs) -> ScheduledPolicy:
    return hindsight(inputs.needs_trace(), inputs.needs_bank(), inputs.needs_cost(), inputs.num_heads)
