import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from entmtp.policies.acceptance_bias import AcceptanceBias
from entmtp.policies.goodput import GoodputPolicy, candidates
from entmtp.policies.policy_cost import FixedCost
from entmtp.policies.rate import best_choices
from entmtp.policies.signals import Signals
from entmtp.policies.step_cost import StepCost
from entmtp.trees.predictor import Predictor
from entmtp.trees.topology import Topology
from tests.helpers.policy_costs import ChangingCost, LinearCost

EASY = Signals(0, 0.0, 0.0, 0.0)
HARD = Signals(0, 4.0, 4.0, 0.0)
PREDICTOR = Predictor(
    features=["entropy"],
    weights=[-1.0],
    bias=0.0,
    centres=[-4.0, 0.0],
    shares=[0.5, 0.5],
    paths=[(0,), (0, 0), (0, 0, 0), (1,)],
    probabilities=[[0.1, 0.0, 0.0, 0.05], [0.9, 0.8, 0.7, 0.05]],
)


def linear(per_node: float, per_level: float = 0.0) -> FixedCost:
    """Nodes of all requests are verified one after another; levels are drafted side by side."""
    return FixedCost(lambda batch, context: LinearCost(10, per_node * batch, per_level))


def chosen_by(policy: GoodputPolicy, *signals: Signals) -> list[Topology]:
    biases = [policy.start() for _ in signals]
    return [policy.trees[at] for at in policy.best_trees(policy.scores(signals, biases), [63] * len(signals))]


def test_a_deep_tree_where_the_text_is_easy_and_plain_decoding_where_it_is_hard() -> None:
    policy = GoodputPolicy(PREDICTOR, linear(2.0), 8)
    assert chosen_by(policy, EASY)[0].paths == ((0,), (0, 0), (0, 0, 0))
    assert chosen_by(policy, HARD)[0] == Topology.root_only()


def test_everything_that_may_be_right_where_nodes_cost_nothing() -> None:
    policy = GoodputPolicy(PREDICTOR, linear(0.0), 8)
    assert chosen_by(policy, HARD)[0].paths == ((0,), (1,))
    assert chosen_by(policy, EASY)[0].nodes == 4


def test_guesses_are_expected_to_gain_the_chances_of_their_paths_the_root_not_counted() -> None:
    policy, biases = GoodputPolicy(PREDICTOR, linear(0.0), 8), [AcceptanceBias()]
    (choice,) = policy.choose([EASY], biases, [63], lambda requests: pytest.fail("it drafted"))
    assert choice.topology.nodes == 4
    assert biases[0].expected == pytest.approx(0.9 + 0.8 + 0.7 + 0.05)


@pytest.mark.parametrize("batch", [1, 4])
def test_where_trees_are_padded_they_fill_the_padding(batch: int) -> None:
    paths = [(rank,) for rank in range(64)]
    chances = [0.9 * 0.97**rank / 20 for rank in range(64)]
    predictor = Predictor(**PREDICTOR.model_dump() | {"paths": paths, "probabilities": [chances, chances]})
    cost = StepCost(
        nodes=[0, 63],
        verify_ms=[10.0, 14.0],
        narrow_draft_ms=[0.1],
        wide_draft_ms=[0.1],
        wide_nodes=63,
        hardware="",
        padded=True,
    )
    policy = GoodputPolicy(predictor, FixedCost(lambda batch, context: cost, padded=True), 8)
    assert {tree.nodes for tree in policy.trees} == {0, 1, 3, 7, 15, 23, 31, 39, 47, 63}
    assert {tree.nodes for tree in chosen_by(policy, *[EASY] * batch)} <= {1, 3, 7, 15, 23, 31, 39, 47, 63}
    limited = policy.best_trees([0.0] * batch, [22] * batch)
    assert {policy.trees[at].nodes for at in limited} <= {1, 3, 7, 15}


def test_plain_decoding_where_every_node_costs_a_step() -> None:
    policy = GoodputPolicy(PREDICTOR, linear(10.0), 8)
    assert chosen_by(policy, EASY)[0] == Topology.root_only()
    assert policy.rate() == pytest.approx(0.1)


def test_levels_have_a_price_too() -> None:
    flat = GoodputPolicy(PREDICTOR, linear(0.0, per_level=9.0), 8)
    assert chosen_by(flat, EASY)[0].max_depth < 3


def test_one_shape_serves_a_batch_and_each_request_takes_its_best_tree_within_it() -> None:
    policy = GoodputPolicy(PREDICTOR, linear(0.5), 8)
    easy, hard = chosen_by(policy, EASY, HARD)
    assert easy.paths == ((0,), (0, 0), (0, 0, 0))
    assert hard.paths == ((0,), (1,)), "nodes that are padded anyway cost nothing"


def test_a_batch_for_which_nodes_are_expensive_decodes_plainly() -> None:
    policy = GoodputPolicy(PREDICTOR, linear(1.0), 8)
    assert chosen_by(policy, EASY)[0].nodes == 3
    assert {tree.nodes for tree in chosen_by(policy, *[EASY] * 16)} == {0}
    assert policy.rate([63] * 16) == pytest.approx(16 / 10)


def test_other_costs_count_once_their_version_is_another() -> None:
    cost = ChangingCost(linear(0.5).of_batch)
    policy = GoodputPolicy(PREDICTOR, cost, 8)
    batches = [EASY], [EASY, EASY]
    cheap = [chosen_by(policy, *batch) for batch in batches]
    cost.current = linear(10.0).of_batch
    assert [chosen_by(policy, *batch) for batch in batches] == cheap
    cost.version = 1
    assert [chosen_by(policy, *batch) for batch in batches] == [
        [Topology.root_only()] * len(batch) for batch in batches
    ]
    assert policy.rate([63, 63]) == pytest.approx(0.2)


@given(st.lists(st.floats(0, 5), min_size=1, max_size=5), st.floats(0, 5), st.floats(0, 3))
def test_no_shape_has_a_larger_net_gain(nats: list[float], per_node: float, per_level: float) -> None:
    policy = GoodputPolicy(PREDICTOR, linear(per_node, per_level), 8)
    signals = [Signals(0, each, each, 0.0) for each in nats]
    cost, rate = linear(per_node, per_level).of_batch(len(nats), 160), policy.rate([63] * len(nats))

    def net_gain(trees: list[Topology]) -> float:
        widest = max(trees, key=lambda tree: (tree.nodes, tree.max_depth))
        gain = sum(
            float(PREDICTOR.centre_weights(float(PREDICTOR.score(np.array([each])))) @ PREDICTOR.gains([tree])[:, 0])
            for each, tree in zip(nats, trees, strict=True)
        )
        return gain - rate * cost(widest)

    found = net_gain(chosen_by(policy, *signals))
    for tree in policy.trees:
        assert found >= net_gain([tree] * len(nats)) - 1e-9


def test_candidates_are_the_likeliest_paths_of_each_centre_by_depth_and_size() -> None:
    found = {tree.paths for tree in candidates(PREDICTOR, (0, 1, 2))}
    assert found == {(), ((0,),), ((0,), (1,)), ((0,), (0, 0))}


gains = st.lists(st.lists(st.floats(1, 6), min_size=3, max_size=3), min_size=1, max_size=3)


@given(gains, st.lists(st.floats(1, 50), min_size=3, max_size=3), st.integers(0, 2**16))
def test_no_choice_per_centre_has_a_better_rate(table: list[list[float]], costs: list[float], seed: int) -> None:
    shares = np.random.default_rng(seed).dirichlet(np.ones(len(table)))
    gain, cost = np.array(table), np.array(costs)
    best = max(
        shares @ gain[np.arange(len(gain)), choice] / (shares @ cost[list(choice)])
        for choice in itertools.product(range(3), repeat=len(gain))
    )
    chosen, rate = best_choices(list(gain), [cost] * len(gain), shares)
    assert rate == pytest.approx(best, rel=1e-6)
    assert shares @ gain[np.arange(len(gain)), chosen] / (shares @ cost[chosen]) == pytest.approx(rate)
