from collections.abc import Callable

import pytest

from entmtp.policies.base import Policy, RequestPolicy
from entmtp.policies.goodput import GoodputPolicy
from entmtp.policies.online_cost import CHECK_PERIOD, OnlineStepCost
from entmtp.policies.policy_cost import PolicyCost, cached_at
from entmtp.policies.probing import EVERY
from entmtp.policies.signals import Signals
from entmtp.policies.static import StaticPolicy
from entmtp.policies.step_cost import BatchedCost, CostTable, StepCost
from entmtp.trees.topology import Topology
from tests.helpers.simulated_machine import COST, SIZES, machine, wide
from tests.helpers.small_cases import small_predictor

EASY = Signals(0, 0.0, 0.0, 0.0)


class CheapestPolicy(RequestPolicy):
    """Takes the cheapest tree but plain decoding, and counts how often it searches for it."""

    entropy_window = 8
    cost: PolicyCost

    def __init__(self, cost: PolicyCost) -> None:
        self.cost = cost
        self.searches = 0
        self._cheapest = cached_at(cost, self._search)

    def choose_one(self, signals: Signals, state: None, limit: int) -> Topology:
        return self._cheapest()

    def _search(self) -> Topology:
        self.searches += 1
        costs = {tree: self.cost(tree) / (1 + tree.nodes) for tree in map(wide, SIZES[1:])}
        return min(costs, key=costs.__getitem__)


def online(*costs: StepCost) -> OnlineStepCost:
    return OnlineStepCost(machine(*costs or (COST,)))


def chosen(policy: Policy, state: object = None) -> Topology:
    (choice,) = policy.choose([EASY], [state], [63], lambda requests: pytest.fail("it drafted"))
    return choice.topology


def run(policy: Policy, truth: Callable[[int], float], steps: int) -> None:
    for at in range(steps):
        tree = wide(SIZES[at % len(SIZES)])
        draft = COST.draft(tree)
        policy.observe([tree], {"policy": 0.0, "verify": truth(tree.nodes) * (COST(tree) - draft), "draft": draft})


def test_another_tree_is_chosen_when_trees_compare_otherwise() -> None:
    policy = CheapestPolicy(online())
    assert chosen(policy) == wide(16)
    run(policy, lambda nodes: 4.0 if nodes == 16 else 1.0, 40 * CHECK_PERIOD)
    assert chosen(policy) == wide(8)


def test_a_policy_whose_costs_are_right_derives_nothing_again() -> None:
    policy = CheapestPolicy(online())
    chosen(policy)
    for _ in range(20 * CHECK_PERIOD // len(SIZES)):
        run(policy, lambda nodes: 1.0, len(SIZES))
        policy.cost.start_step(160, drafts=False)
        policy._cheapest()
    assert policy.searches == 1


def test_a_change_makes_one_new_version_and_not_one_at_every_check() -> None:
    policy = CheapestPolicy(online())
    run(policy, lambda nodes: 4.0 if nodes == 16 else 1.0, 100 * CHECK_PERIOD)
    settled = policy.cost.version
    run(policy, lambda nodes: 4.0 if nodes == 16 else 1.0, 10 * CHECK_PERIOD)
    assert settled != online().version
    assert policy.cost.version == settled


def test_goodput_reads_the_corrected_costs() -> None:
    policy = GoodputPolicy(small_predictor(), online(), 8)
    before = policy.rate()
    run(policy, lambda nodes: 1.0 if nodes == 0 else 4.0, 40 * CHECK_PERIOD)
    assert policy.rate() < before


def test_a_step_is_compared_with_what_was_measured_at_its_context() -> None:
    longer = COST.model_copy(update={"verify_ms": [2 * ms for ms in COST.verify_ms]})
    costs = OnlineStepCost(BatchedCost(measured={1: CostTable(contexts=[160, 4096], costs=[COST, longer])}))
    policy, tree = CheapestPolicy(costs), wide(16)
    signals = Signals(0, 0.0, 0.0, 0.0, context=4096)
    for _ in range(4 * CHECK_PERIOD):
        policy.choose([signals], [None], [63], lambda requests: pytest.fail("it drafted"))
        policy.observe([tree], {"verify": longer.without_draft(16), "draft": longer.draft(tree)})
    assert costs(tree) == pytest.approx(COST(tree))


def test_a_policy_of_each_request_tells_its_costs_when_nothing_may_be_drafted() -> None:
    costs = online()
    policy, before = CheapestPolicy(costs), costs.filter_of(1).correction
    policy.choose([EASY], [None], [0], lambda requests: pytest.fail("it drafted"))
    policy.observe([wide(0)], {"verify": 500.0, "draft": 0.0})
    assert costs.filter_of(1).correction == before


@pytest.mark.parametrize("trees", [(0, 16), (16, 0), (1, 0, 16)])
def test_a_step_of_several_trees_teaches_of_the_widest_to_which_all_are_padded(trees: tuple[int, ...]) -> None:
    costs = online(*[COST] * len(trees))
    cost = costs.of_batch(len(trees), 160)
    draft = COST.draft(wide(16))
    for _ in range(8 * CHECK_PERIOD):
        took = {"policy": 0.0, "verify": COST(wide(16)) - draft, "draft": draft}
        costs.observe([wide(nodes) for nodes in trees], took)
    assert [cost(wide(nodes)) for nodes in SIZES] == pytest.approx([COST(wide(nodes)) for nodes in SIZES])


def test_the_predicted_goodput_is_reported_if_the_policy_predicts() -> None:
    policy = GoodputPolicy(small_predictor(), online(), 8)
    assert policy.predicted_goodput is None
    bias = policy.start()
    tree = chosen(policy, bias)
    assert tree.nodes
    assert bias.expected is not None
    assert policy.predicted_goodput == pytest.approx((1 + bias.expected) / COST(tree))
    policy.choose([EASY], [bias], [0], lambda requests: pytest.fail("it drafted"))
    assert policy.predicted_goodput == pytest.approx(1 / COST(wide(0)))
    static = StaticPolicy(wide(2), 8)
    chosen(static)
    assert static.predicted_goodput is None


def probing() -> OnlineStepCost:
    """Costs whose next step is a probe."""
    cost = online()
    for _ in range(EVERY):
        cost.observe([wide(0)], {"verify": COST(wide(0)), "draft": 0.0})
    return cost


def test_a_probe_reads_optimistic_costs_which_have_their_own_version() -> None:
    cost = probing()
    corrected, version = cost(wide(16)), cost.version
    cost.start_step(160, drafts=True)
    assert cost(wide(16)) < 0.9 * corrected
    assert cost.version != version
    cost.observe([wide(0)], {"verify": COST(wide(0)), "draft": 0.0})
    assert cost.version == version
    assert cost(wide(16)) == pytest.approx(corrected, rel=0.01)


def test_a_step_in_which_nothing_may_be_drafted_is_no_probe() -> None:
    cost = probing()
    version = cost.version
    cost.start_step(160, drafts=False)
    assert cost.version == version


def test_the_goodput_predicted_of_a_probe_is_that_of_corrected_costs() -> None:
    cost = probing()
    policy = GoodputPolicy(small_predictor(), cost, 8)
    bias = policy.start()
    tree = chosen(policy, bias)
    policy.observe([tree], {"verify": COST.without_draft(tree.nodes), "draft": COST.draft(tree)})
    assert bias.expected is not None
    assert policy.predicted_goodput == pytest.approx((1 + bias.expected) / COST(tree), rel=0.01)


def test_probes_may_choose_otherwise_without_what_other_steps_derived_being_lost() -> None:
    policy = CheapestPolicy(probing())
    for drafts in (False, True) * 4:
        policy.cost.start_step(160, drafts=drafts)
        policy._cheapest()
    assert policy.searches == 2
