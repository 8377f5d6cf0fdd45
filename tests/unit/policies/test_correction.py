from collections.abc import Callable

import pytest

from entmtp.policies.base import Policy
from entmtp.policies.correction import CHECK_PERIOD, OnlineCostPolicy
from entmtp.policies.goodput import GoodputPolicy
from entmtp.policies.signals import Signals
from entmtp.policies.static import StaticPolicy
from entmtp.policies.step_cost import PolicyCost
from tests.helpers.simulated_machine import COST, SIZES, machine, wide
from tests.helpers.small_cases import small_predictor


class Remade:
    """Makes policies that take the cheapest tree but plain decoding, and counts them."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, cost: PolicyCost) -> Policy:
        self.count += 1
        return StaticPolicy(min(map(wide, SIZES[1:]), key=lambda tree: cost(tree) / (1 + tree.nodes)), 8)


def run(policy: OnlineCostPolicy, truth: Callable[[int], float], steps: int) -> None:
    for at in range(steps):
        tree = wide(SIZES[at % len(SIZES)])
        draft = COST.draft(tree)
        policy.observe([tree], {"policy": 0.0, "verify": truth(tree.nodes) * (COST(tree) - draft), "draft": draft})


def test_the_policy_is_made_anew_when_trees_compare_otherwise() -> None:
    made = Remade()
    policy = OnlineCostPolicy(made, machine(COST))
    assert policy.policy.topology == wide(16)  # type: ignore[attr-defined]
    run(policy, lambda nodes: 4.0 if nodes == 16 else 1.0, 40 * CHECK_PERIOD)
    assert policy.policy.topology == wide(8)  # type: ignore[attr-defined]


def test_a_policy_that_is_right_is_left_alone() -> None:
    made = Remade()
    run(OnlineCostPolicy(made, machine(COST)), lambda nodes: 1.0, 20 * CHECK_PERIOD)
    assert made.count == 1


def test_a_policy_that_can_take_other_costs_in_is_not_made_anew() -> None:
    made: list[GoodputPolicy] = []

    def make(cost: PolicyCost) -> Policy:
        made.append(GoodputPolicy(small_predictor(), cost.of_batch, 8))
        return made[-1]

    policy = OnlineCostPolicy(make, machine(COST))
    before = made[0].rate()
    run(policy, lambda nodes: 1.0 if nodes == 0 else 4.0, 40 * CHECK_PERIOD)
    assert len(made) == 1
    assert made[0].rate() < before


@pytest.mark.parametrize("trees", [(0, 16), (16, 0), (1, 0, 16)])
def test_a_step_of_several_trees_teaches_of_the_widest_to_which_all_are_padded(trees: tuple[int, ...]) -> None:
    policy = OnlineCostPolicy(lambda cost: StaticPolicy(wide(2), 8), machine(*[COST] * len(trees)))
    cost = policy._costs.for_batch(len(trees)).at(160)
    draft = COST.draft(wide(16))
    for _ in range(8 * CHECK_PERIOD):
        took = {"policy": 0.0, "verify": COST(wide(16)) - draft, "draft": draft}
        policy.observe([wide(nodes) for nodes in trees], took)
    assert [cost(wide(nodes)) for nodes in SIZES] == pytest.approx([COST(wide(nodes)) for nodes in SIZES])


def test_the_predicted_goodput_is_reported_if_the_policy_predicts() -> None:
    policy = OnlineCostPolicy(lambda cost: GoodputPolicy(small_predictor(), cost.of_batch, 8), machine(COST))
    assert policy.predicted_goodput is None
    biases = [policy.start()]
    (choice,) = policy.choose([Signals(0, 0.0, 0.0, 0.0)], biases, [63], lambda requests: pytest.fail("it drafted"))
    assert choice.topology.nodes
    assert policy.predicted_goodput == pytest.approx((1 + biases[0].expected) / COST(choice.topology))
    static = OnlineCostPolicy(lambda cost: StaticPolicy(wide(2), 8), machine(COST))
    static.choose([Signals(0, 0.0, 0.0, 0.0)], [None], [63], lambda requests: pytest.fail("it drafted"))
    assert static.predicted_goodput is None
