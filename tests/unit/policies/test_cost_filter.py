from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from entmtp.policies.cost_filter import CostFilter
from entmtp.policies.online_cost import OnlineStepCost
from entmtp.policies.step_cost import CostTable
from tests.helpers.simulated_machine import COST, SIZES, machine, wide

TABLE = CostTable(contexts=[160], costs=[COST])
CONTEXT = 160


def watch(online: CostFilter, truth: Callable[[int], float], steps: int, draft: float = 1.0) -> None:
    """Steps with trees of all sizes in turn, which take ``truth`` times as long as was measured."""
    for at in range(steps):
        tree = wide(SIZES[at % len(SIZES)])
        online.observe(tree, CONTEXT, truth(tree.nodes) * (COST(tree) - COST.draft(tree)), draft * COST.draft(tree))


def test_a_machine_that_slows_down_as_a_whole_compares_trees_as_before() -> None:
    online = CostFilter(TABLE)
    cost = online.at(CONTEXT)
    watch(online, lambda nodes: 2.0, 2400, draft=2.0)
    assert [cost(wide(nodes)) for nodes in SIZES] == pytest.approx([2 * COST(wide(nodes)) for nodes in SIZES], rel=0.01)
    assert np.abs(online.shape).max() < 0.01


def test_sizes_that_were_measured_wrong_are_put_right() -> None:
    online = CostFilter(TABLE)
    cost = online.at(CONTEXT)
    watch(online, lambda nodes: 1.5 if nodes >= 8 else 1.0, 1200)
    for nodes in SIZES:
        expected = (1.5 if nodes >= 8 else 1.0) * (COST(wide(nodes)) - COST.draft(wide(nodes)))
        assert cost(wide(nodes)) - cost.draft(wide(nodes)) == pytest.approx(expected, rel=0.05)


def test_padded_trees_share_what_steps_of_their_width_teach() -> None:
    padded = COST.model_copy(update={"padded": True})
    online = CostFilter(CostTable(contexts=[CONTEXT], costs=[padded]))
    for _ in range(300):
        online.observe(wide(4), CONTEXT, 3 * padded.without_draft(7), padded.draft(wide(7)))
    cost = online.at(CONTEXT)
    assert cost(wide(4)) == cost(wide(5)) == cost(wide(7))
    assert online.size_factor(7) > 2.9


def test_a_machine_that_slows_down_while_it_decodes_plainly_compares_trees_as_before() -> None:
    online = CostFilter(TABLE)
    cost = online.at(CONTEXT)
    watch(online, lambda nodes: 1.0, 600)
    for _ in range(200):
        online.observe(wide(0), CONTEXT, 1.5 * COST(wide(0)), 0.0)
    assert cost(wide(0)) == pytest.approx(1.5 * COST(wide(0)), rel=0.01)
    assert np.abs(online.shape).max() < 0.1 * np.log(1.5)


def test_sizes_that_were_measured_wrong_are_put_right_within_some_steps() -> None:
    online = CostFilter(TABLE)
    for at in range(32):
        tree = wide((0, 1)[at % 2])
        online.observe(
            tree, CONTEXT, (0.93 if tree.nodes == 0 else 1.05) * (COST(tree) - COST.draft(tree)), COST.draft(tree)
        )
    assert online.shape[1] == pytest.approx(np.log(1.05 / 0.93), rel=0.25)


def test_sizes_that_never_come_follow_their_neighbours() -> None:
    online = CostFilter(TABLE)
    cost = online.at(CONTEXT)
    for _ in range(200):
        online.observe(wide(8), CONTEXT, 48.0, 2.0)
    assert cost(wide(8)) == pytest.approx(50.0, rel=0.01)
    assert COST(wide(4)) < cost(wide(4)) < 2 * COST(wide(4))
    assert cost(wide(0)) - COST(wide(0)) < cost(wide(4)) - COST(wide(4))


def test_drafting_is_corrected_by_itself() -> None:
    online = CostFilter(TABLE)
    cost = online.at(CONTEXT)
    watch(online, lambda nodes: 1.0, 600, draft=3.0)
    assert cost.draft(wide(2)) == pytest.approx(6.0, rel=0.01)
    assert cost(wide(0)) == pytest.approx(20.0)


@given(st.lists(st.tuples(st.sampled_from(SIZES), st.floats(0, 1e6)), max_size=50))
def test_no_single_step_says_much(steps: list[tuple[int, float]]) -> None:
    online = CostFilter(TABLE)
    cost = online.at(CONTEXT)
    for nodes, ms in steps:
        before = cost(wide(nodes))
        online.observe(wide(nodes), CONTEXT, ms, ms)
        assert 0.94 < cost(wide(nodes)) / before < 1.06


def test_steps_of_two_requests_teach_of_two_alone() -> None:
    online = OnlineStepCost(machine(COST, COST))
    for _ in range(128):
        online.filter_of(2).observe(wide(1), CONTEXT, 500.0, 2.0)
    one = online.filter_of(1).at(CONTEXT)
    assert online.filter_of(2).at(CONTEXT)(wide(1)) > 5 * one(wide(1))
    assert one(wide(1)) == COST(wide(1))
    assert one.draft(wide(1)) == COST.draft(wide(1))
