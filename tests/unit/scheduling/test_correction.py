from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from entmtp.scheduling.correction import PERIOD, CorrectedCost, CorrectedMachine, CorrectingPolicy
from entmtp.scheduling.cost import BatchedCost, PolicyCost, StepCost
from entmtp.scheduling.goodput import GoodputPolicy
from entmtp.scheduling.policies import Policy, StaticPolicy
from entmtp.scheduling.signals import Signals
from entmtp.trees.topology import Topology
from tests.small import small_predictor

SIZES = (0, 1, 2, 4, 8, 16)
COST = StepCost(
    nodes=list(SIZES),
    verify_ms=[20.0, 20.5, 21.0, 22.0, 24.0, 28.0],
    narrow_draft_ms=[2.0, 4.0],
    wide_draft_ms=[2.0, 4.0],
    wide_nodes=63,
    hardware="test",
)


def wide(nodes: int) -> Topology:
    return Topology.of([(rank,) for rank in range(nodes)]) if nodes else Topology.root_only()


def watch(cost: CorrectedCost, truth: Callable[[int], float], steps: int, draft: float = 1.0) -> None:
    """Steps with trees of all sizes in turn, which take ``truth`` times as long as was measured."""
    for at in range(steps):
        tree = wide(SIZES[at % len(SIZES)])
        cost.observe(tree, truth(tree.nodes) * (COST(tree) - COST.draft(tree)), draft * COST.draft(tree))


def test_a_machine_that_slows_down_as_a_whole_compares_trees_as_before() -> None:
    cost = CorrectedCost(COST)
    watch(cost, lambda nodes: 2.0, 2400, draft=2.0)
    assert [cost(wide(nodes)) for nodes in SIZES] == pytest.approx([2 * COST(wide(nodes)) for nodes in SIZES], rel=0.01)
    assert np.abs(cost.shape).max() < 0.01


def test_sizes_that_were_measured_wrong_are_put_right() -> None:
    cost = CorrectedCost(COST)
    watch(cost, lambda nodes: 1.5 if nodes >= 8 else 1.0, 1200)
    for nodes in SIZES:
        expected = (1.5 if nodes >= 8 else 1.0) * (COST(wide(nodes)) - COST.draft(wide(nodes)))
        assert cost(wide(nodes)) - cost.draft(wide(nodes)) == pytest.approx(expected, rel=0.05)


def test_a_machine_that_slows_down_while_it_decodes_plainly_compares_trees_as_before() -> None:
    cost = CorrectedCost(COST)
    watch(cost, lambda nodes: 1.0, 600)
    for _ in range(200):
        cost.observe(wide(0), 1.5 * COST(wide(0)), 0.0)
    assert cost(wide(0)) == pytest.approx(1.5 * COST(wide(0)), rel=0.01)
    assert np.abs(cost.shape).max() < 0.1 * np.log(1.5)


def test_sizes_that_were_measured_wrong_are_put_right_within_some_steps() -> None:
    cost = CorrectedCost(COST)
    for at in range(32):
        tree = wide((0, 1)[at % 2])
        cost.observe(tree, (0.93 if tree.nodes == 0 else 1.05) * (COST(tree) - COST.draft(tree)), COST.draft(tree))
    assert cost.shape[1] == pytest.approx(np.log(1.05 / 0.93), rel=0.25)


def test_sizes_that_never_come_follow_their_neighbours() -> None:
    cost = CorrectedCost(COST)
    for _ in range(200):
        cost.observe(wide(8), 48.0, 2.0)
    assert cost(wide(8)) == pytest.approx(50.0, rel=0.01)
    assert COST(wide(4)) < cost(wide(4)) < 2 * COST(wide(4))
    assert cost(wide(0)) - COST(wide(0)) < cost(wide(4)) - COST(wide(4))


def test_drafting_is_corrected_by_itself() -> None:
    cost = CorrectedCost(COST)
    watch(cost, lambda nodes: 1.0, 600, draft=3.0)
    assert cost.draft(wide(2)) == pytest.approx(6.0, rel=0.01)
    assert cost(wide(0)) == pytest.approx(20.0)


@given(st.lists(st.tuples(st.sampled_from(SIZES), st.floats(0, 1e6)), max_size=50))
def test_no_single_step_says_much(steps: list[tuple[int, float]]) -> None:
    cost = CorrectedCost(COST)
    for nodes, ms in steps:
        before = cost(wide(nodes))
        cost.observe(wide(nodes), ms, ms)
        assert 0.94 < cost(wide(nodes)) / before < 1.06


class Remade:
    """Makes policies that take the cheapest tree but plain decoding, and counts them."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, cost: PolicyCost) -> Policy:
        self.count += 1
        return StaticPolicy(min(map(wide, SIZES[1:]), key=lambda tree: cost(tree) / (1 + tree.nodes)), 8)


def run(policy: CorrectingPolicy, truth: Callable[[int], float], steps: int) -> None:
    for at in range(steps):
        tree = wide(SIZES[at % len(SIZES)])
        draft = COST.draft(tree)
        policy.observe([tree], {"policy": 0.0, "verify": truth(tree.nodes) * (COST(tree) - draft), "draft": draft})


def test_the_policy_is_made_anew_when_trees_compare_otherwise() -> None:
    made = Remade()
    policy = CorrectingPolicy(made, COST)
    assert policy.policy.topology == wide(16)  # type: ignore[attr-defined]
    run(policy, lambda nodes: 4.0 if nodes == 16 else 1.0, 40 * PERIOD)
    assert policy.policy.topology == wide(8)  # type: ignore[attr-defined]


def test_a_policy_that_is_right_is_left_alone() -> None:
    made = Remade()
    run(CorrectingPolicy(made, COST), lambda nodes: 1.0, 20 * PERIOD)
    assert made.count == 1


def test_a_policy_that_can_take_other_costs_in_is_not_made_anew() -> None:
    made: list[GoodputPolicy] = []

    def make(cost: PolicyCost) -> Policy:
        made.append(GoodputPolicy(small_predictor(), cost.of_batch, 8))
        return made[-1]

    policy = CorrectingPolicy(make, COST)
    before = made[0].rate()
    run(policy, lambda nodes: 1.0 if nodes == 0 else 4.0, 40 * PERIOD)
    assert len(made) == 1
    assert made[0].rate() < before


def test_steps_of_two_requests_teach_of_two_alone() -> None:
    machine = CorrectedMachine(BatchedCost(measured={1: COST, 2: COST}))
    for _ in range(8 * PERIOD):
        machine.of_batch(2).observe(wide(1), 500.0, 2.0)
    assert machine.of_batch(2)(wide(1)) > 5 * machine(wide(1))
    assert machine(wide(1)) == COST(wide(1))
    assert machine.draft(wide(1)) == COST.draft(wide(1))


@pytest.mark.parametrize("trees", [(0, 16), (16, 0), (1, 0, 16)])
def test_a_step_of_several_trees_teaches_of_the_widest_to_which_all_are_padded(trees: tuple[int, ...]) -> None:
    machine = BatchedCost(measured={1: COST, len(trees): COST})
    policy = CorrectingPolicy(lambda cost: StaticPolicy(wide(2), 8), machine)
    cost = policy._machine.of_batch(len(trees))
    draft = COST.draft(wide(16))
    for _ in range(8 * PERIOD):
        took = {"policy": 0.0, "verify": COST(wide(16)) - draft, "draft": draft}
        policy.observe([wide(nodes) for nodes in trees], took)
    assert [cost(wide(nodes)) for nodes in SIZES] == pytest.approx([COST(wide(nodes)) for nodes in SIZES])


def test_what_a_step_should_gain_is_told_where_the_policy_says() -> None:
    policy = CorrectingPolicy(lambda cost: GoodputPolicy(small_predictor(), cost.of_batch, 8), COST)
    assert policy.foretold is None
    beliefs = [policy.start()]
    (choice,) = policy.choose([Signals(0, 0.0, 0.0, 0.0)], beliefs, [63], lambda requests: pytest.fail("it drafted"))
    assert choice.topology.nodes
    assert policy.foretold == pytest.approx((1 + beliefs[0].expected) / COST(choice.topology))
    static = CorrectingPolicy(lambda cost: StaticPolicy(wide(2), 8), COST)
    static.choose([Signals(0, 0.0, 0.0, 0.0)], [None], [63], lambda requests: pytest.fail("it drafted"))
    assert static.foretold is None
