from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from entmtp.models.backbone import Backbone
from entmtp.policies.static import ScheduledPolicy, StaticPolicy
from entmtp.trees.published import published_tree
from entmtp.trees.topology import Topology
from entmtp.trees.trace import MISS, RankTrace
from entmtp.trees.trace_replay import (
    accepted_length,
    accepted_lengths,
    best_schedule,
    right_path_schedule,
    static_tau,
    visits,
)
from tests.helpers.small_cases import (
    drawn_trace,
    single_engine,
    small_backbone,
    small_heads,
    small_prompt,
    trace_of,
    traced,
)
from tests.helpers.tiny_models import TREES

RANKS = st.sampled_from([0, 0, 1, 2, MISS])
TRACES = st.lists(st.lists(RANKS, min_size=3, max_size=3), min_size=1, max_size=8).map(trace_of)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return small_backbone()


def cost(topology: Topology) -> float:
    return 1.0 + 0.3 * topology.nodes


def cheapest(trace: RankTrace, trees: Sequence[Topology], at: int = 0) -> float:
    """The least time over every sequence of trees, by trying all."""
    if at >= len(trace):
        return 0.0
    return min(cost(tree) + cheapest(trace, trees, at + 1 + int(accepted_lengths(trace, tree)[at])) for tree in trees)


def test_a_walk_by_hand() -> None:
    trace = trace_of([[0, 1, 0], [1, 0, 0], [0, 0, 0], [2, 0, 0], [MISS, MISS, MISS]])
    tree = Topology.of([(0,), (1,), (0, 1), (0, 0), (0, 0, 0)])
    lengths = accepted_lengths(trace, tree)
    assert lengths.tolist() == [2, 1, 3, 0, 0]
    assert visits(lengths).tolist() == [0, 3, 4]
    assert static_tau([trace], tree) == 5 / 3
    assert static_tau([trace], Topology.root_only()) == 1.0


@settings(deadline=None)
@given(TRACES)
def test_the_best_schedule_is_the_best_of_all_schedules(trace: RankTrace) -> None:
    trees = [TREES["root"], TREES["chain"], Topology.of([(0,), (1,)])]
    schedule, time = best_schedule(trace, trees, cost)
    assert time == pytest.approx(cheapest(trace, trees))
    walked, at = 0.0, 0
    while at < len(trace):
        walked += cost(schedule[at])
        at += 1 + int(accepted_lengths(trace, schedule[at])[at])
    assert walked == pytest.approx(time)
    for tree in trees:
        assert time <= cost(tree) * len(visits(accepted_lengths(trace, tree))) + 1e-9


@pytest.mark.parametrize("kind", ["hydra", "medusa"])
@pytest.mark.parametrize("tree", [TREES["root"], TREES["chain"], TREES["bushy"], published_tree()], ids=str)
def test_replay_foretells_a_real_run_step_by_step(kind: str, tree: Topology, backbone: Backbone) -> None:
    if tree.max_rank and max(tree.max_rank) >= 12:
        tree = Topology.of([path for path in tree.paths if max(path) < 12])
    heads, prompt = small_heads(kind, backbone), small_prompt(7)
    done = single_engine(backbone, heads, StaticPolicy(tree, 8)).generate(prompt, 60)
    trace = traced(backbone, heads, prompt, done.tokens)

    lengths = accepted_lengths(trace, tree)
    assert [step.position for step in done.steps] == visits(lengths).tolist()
    gained = [min(step.gained, len(done.tokens) - step.position) for step in done.steps]
    assert gained == (lengths[visits(lengths)] + 1).tolist()
    assert static_tau([trace], tree) == pytest.approx(done.tau)
    if tree.nodes > 10:
        assert done.tau > 1.1, "the case must accept something, or it shows nothing"
    seen = np.array([step.signals.entropy for step in done.steps])
    np.testing.assert_allclose(seen, trace.entropy.numpy()[visits(lengths)], atol=1e-4)


@given(seed=st.integers(0, 1000))
def test_the_right_path_alone_is_never_slower_than_any_schedule_of_trees(seed: int) -> None:
    trace = drawn_trace(30, [0.5, 0.2, 0.1], heads=3, seed=seed)
    trees = [TREES["root"], TREES["chain"], TREES["wide"], TREES["bushy"]]
    ranks = 1 + max(max(tree.max_rank, default=0) for tree in trees)
    schedule, time = right_path_schedule(trace, cost, ranks)
    assert time <= best_schedule(trace, trees, cost)[1] + 1e-9
    at, spent = 0, 0.0
    while at < len(trace):  # it accepts all that it verifies
        tree = schedule[at]
        assert accepted_length(tree, trace.ranks[at].tolist()) == tree.nodes == tree.max_depth
        assert all(rank < ranks for path in tree.paths for rank in path)
        spent += cost(tree)
        at += 1 + tree.nodes
    assert spent == pytest.approx(time)
    assert right_path_schedule(trace, cost, 0)[1] == pytest.approx(len(trace) * cost(TREES["root"]))


def test_a_hindsight_schedule_runs_as_computed(backbone: Backbone) -> None:
    heads, prompt = small_heads("hydra", backbone), small_prompt(7)
    text = single_engine(backbone, None, StaticPolicy(TREES["root"], 8)).generate(prompt, 60).tokens
    trees = [TREES["root"], TREES["chain"], TREES["wide"], TREES["bushy"]]
    schedule, time = best_schedule(traced(backbone, heads, prompt, text), trees, cost)
    done = single_engine(backbone, heads, ScheduledPolicy(schedule, 8)).generate(prompt, 60)
    assert done.tokens == text
    assert sum(cost(step.topology) for step in done.steps) == pytest.approx(time)
    assert len({step.topology.name for step in done.steps}) > 1
