"""EAGLE-2's tree: equal to a plain transcription of the paper, connected, within every limit, alike at each run."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from entmtp.heads.interface import Expansion
from entmtp.policies.base import Choice
from entmtp.policies.eagle2 import LEVELS, MAX_TREE_NODES, TOP_K, Eagle2Policy
from entmtp.policies.registry import PolicyInputs, find_policy
from entmtp.policies.signals import Signals
from entmtp.trees.bank import MAX_NODES
from entmtp.trees.topology import Path, Topology
from tests.helpers.eagle2_reference import Table, TabledHeads, eagle2_tree


def table_of(seed: int, width: int = 16, ties: bool = False) -> Table:
    """Random log-probabilities after every path: numbers of few bits, whose sums are exact, so that some are equal."""
    parts = 2 if ties else 2**16

    def after(path: Path) -> list[float]:
        draw = random.Random(repr((seed, path)))
        return sorted((-draw.randint(0, 4 * parts) / parts for _ in range(width)), reverse=True)

    return after


def even(path: Path) -> list[float]:
    """Sure of everything: all nodes are equal."""
    return [0.0] * 16


def choose(tables: Sequence[Table], limits: Sequence[int], num_heads: int = LEVELS) -> tuple[list[Choice], TabledHeads]:
    """The trees of requests with these limits; the heads are those of the drafting ones."""
    heads = TabledHeads([table for table, limit in zip(tables, limits, strict=True) if limit], num_heads)

    def begin(requests: Sequence[int]) -> Expansion:
        assert list(requests) == [request for request, limit in enumerate(limits) if limit]
        return heads

    seen = [Signals(0, 0.5, 0.5, 1.0)] * len(limits)
    return Eagle2Policy(8).choose(seen, [None] * len(limits), limits, begin), heads


requests = st.lists(
    st.tuples(st.integers(0, 10**6), st.booleans(), st.sampled_from([0, 1, 2, 9, 30, 58, 59, 60, MAX_NODES])),
    min_size=1,
    max_size=3,
)


@given(requests, st.integers(1, 10), st.sampled_from([1, 4, 10, 16]))
def test_each_requests_tree_is_that_of_the_paper(
    batch: list[tuple[int, bool, int]], num_heads: int, width: int
) -> None:
    tables = [table_of(seed, width, ties) for seed, ties, _ in batch]
    limits = [limit for _, _, limit in batch]
    choices, _ = choose(tables, limits, num_heads)
    drafting = [request for request, limit in enumerate(limits) if limit]
    for request, (choice, table, limit) in enumerate(zip(choices, tables, limits, strict=True)):
        expected = eagle2_tree(table, min(limit, 59), min(num_heads, 8))
        assert set(choice.topology.paths) == expected
        if expected:
            assert Topology.of(choice.topology.paths) == choice.topology, "connected, in the canonical order"
            number = drafting.index(request)
            assert choice.tokens == [TabledHeads.token(number, path) for path in choice.topology.paths]
        elif drafting:
            assert choice.tokens == []


def test_sizes_are_those_of_the_authors() -> None:
    assert (TOP_K, LEVELS, MAX_TREE_NODES) == (10, 1 + 7, 60 - 1)
    (choice,), heads = choose([table_of(3)], [MAX_NODES])
    assert choice.topology.nodes == 59
    assert heads.widths == [1] + [10] * 7


def test_every_level_is_run_even_for_heads_that_are_sure_of_nothing() -> None:
    flat = [-4.0] * 16
    (choice,), heads = choose([lambda path: flat], [3])
    assert choice.topology.paths == ((0,), (1,), (2,))
    assert len(heads.widths) == LEVELS


def test_shallower_heads_are_run_to_their_own_depth() -> None:
    (choice,), heads = choose([lambda path: [-0.1, -2.0]], [MAX_NODES], num_heads=3)
    assert len(heads.widths) == choice.topology.max_depth == 3


def test_among_equals_the_parent_and_the_lower_rank_come_first() -> None:
    (choice,), _ = choose([even], [MAX_NODES])
    second = [(parent, rank) for parent in range(10) for rank in range(10)]
    assert choice.topology.paths == (*((rank,) for rank in range(10)), *second[:49])
    assert choose([even], [MAX_NODES])[0] == [choice]


def test_a_probability_that_is_rounded_above_one_is_no_likelier_than_its_parent() -> None:
    class Rounded(TabledHeads):
        def next_level(self, parents: Sequence[int], count: int) -> tuple[torch.Tensor, torch.Tensor]:
            tokens, log_probs = super().next_level(parents, count)
            return tokens, log_probs + 1e-6

    heads = Rounded([even], LEVELS)
    seen = Signals(0, 0.5, 0.5, 1.0)
    (choice,) = Eagle2Policy(8).choose([seen], [None], [5], lambda drafting: heads)
    assert choice.topology.paths == tuple((rank,) for rank in range(5))


def test_a_step_in_which_nothing_may_be_drafted_runs_no_heads() -> None:
    assert choose([even, even], [0, 0])[1].widths == []


def test_it_needs_neither_bank_nor_costs() -> None:
    registered = find_policy("eagle2")
    assert (registered.by_bank, registered.by_cost, registered.drafts) == (False, False, True)
    policy = registered.make(PolicyInputs(8))
    assert policy.cost is None
    assert policy.start() is None
    with pytest.raises(AssertionError):
        find_policy("dynamic").make(PolicyInputs(8))
