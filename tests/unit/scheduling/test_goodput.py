import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from entmtp.scheduling.goodput import GoodputPolicy, candidates
from entmtp.scheduling.rate import best_choices
from entmtp.scheduling.signals import Signals
from entmtp.trees.predictor import Predictor
from entmtp.trees.topology import Topology

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


def linear(per_node: float, per_level: float = 0.0) -> object:
    return lambda tree: 10 + per_node * tree.nodes + per_level * tree.max_depth


def test_a_deep_tree_where_the_text_is_easy_and_plain_decoding_where_it_is_hard() -> None:
    policy = GoodputPolicy(PREDICTOR, linear(2.0), 8)  # type: ignore[arg-type]
    assert policy.choose(EASY, None).paths == ((0,), (0, 0), (0, 0, 0))
    assert policy.choose(HARD, None) == Topology.root_only()


def test_everything_that_may_be_right_where_nodes_cost_nothing() -> None:
    policy = GoodputPolicy(PREDICTOR, linear(0.0), 8)  # type: ignore[arg-type]
    assert policy.choose(HARD, None).paths == ((0,), (1,))
    assert policy.choose(EASY, None).nodes == 4


def test_plain_decoding_where_every_node_costs_a_step() -> None:
    policy = GoodputPolicy(PREDICTOR, linear(10.0), 8)  # type: ignore[arg-type]
    assert policy.choose(EASY, None) == Topology.root_only()
    assert policy.rate == pytest.approx(0.1)


def test_levels_have_a_price_too() -> None:
    flat = GoodputPolicy(PREDICTOR, linear(0.0, per_level=9.0), 8)  # type: ignore[arg-type]
    assert flat.choose(EASY, None).max_depth < 3


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
