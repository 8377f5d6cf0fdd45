from itertools import combinations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from entmtp.calibration.optimal import MAX_RANK, is_nested, most_probable_paths, optimal_order, optimal_tree
from entmtp.trees.topology import Path, Topology
from entmtp.trees.trace import MISS, RankTrace
from entmtp.trees.trace_replay import accepted_lengths, static_tau
from tests.helpers.examples import examples
from tests.helpers.small_cases import drawn_trace, trace_of

UNIVERSE: list[Path] = [
    (first, *rest) for first in range(2) for rest in [(), (0,), (1,), (0, 0), (0, 1), (1, 0), (1, 1)]
]
ROWS = st.lists(st.lists(st.sampled_from([0, 0, 1, MISS]), min_size=3, max_size=3), min_size=1, max_size=10)


def closed_sets(size: int) -> list[tuple[Path, ...]]:
    """Every prefix-closed set of ``size`` paths of the universe."""
    return [
        paths for paths in combinations(UNIVERSE, size) if all(len(path) == 1 or path[:-1] in paths for path in paths)
    ]


@settings(max_examples=examples(per_hundred=40))
@given(ROWS, st.integers(1, 4))
def test_the_sort_is_as_good_as_trying_every_tree(rows: list[list[int]], nodes: int) -> None:
    trace = trace_of(rows)
    found = most_probable_paths(np.array(rows), nodes)
    best = max(accepted_lengths(trace, Topology.of(paths)).mean() for paths in closed_sets(nodes))
    assert sum(probability for _, probability in found) == pytest.approx(best)
    if found:
        tree = Topology.of([path for path, _ in found])
        assert accepted_lengths(trace, tree).mean() == pytest.approx(best)


def expanded_by_rollout(trace: RankTrace, nodes: int) -> list[Path]:
    """The slow route: add the path with which a whole rollout gains most tokens per step."""
    order: list[Path] = []
    while len(order) < nodes:
        open_paths = [path for path in UNIVERSE if path not in order and (len(path) == 1 or path[:-1] in order)]
        order.append(max(open_paths, key=lambda path: static_tau([trace], Topology.of([*order, path]))))
    return order


DRAWN = pytest.mark.parametrize(
    ("chances", "expected"),
    [
        # Of the paths' chances: 0.7, 0.49, 0.34, 0.1, then 0.07
        ([0.7, 0.1], [(0,), (0, 0), (0, 0, 0), (1,)]),
        # 0.5, 0.34, 0.25, then twice 0.17
        ([0.5, 0.34], [(0,), (1,), (0, 0)]),
    ],
)


@DRAWN
def test_it_agrees_with_greedy_expansion_by_rollouts(chances: list[float], expected: list[Path]) -> None:
    trace = drawn_trace(4000, chances, heads=3, seed=0)
    assert optimal_order([trace], len(expected)) == expanded_by_rollout(trace, len(expected)) == expected
    ours, theirs = Topology.of(optimal_order([trace], 6)), Topology.of(expanded_by_rollout(trace, 6))
    assert static_tau([trace], ours) == pytest.approx(static_tau([trace], theirs), rel=0.01)


@DRAWN
def test_it_agrees_with_rollouts_of_every_tree(chances: list[float], expected: list[Path]) -> None:
    trace = drawn_trace(4000, chances, heads=3, seed=0)
    for size in range(1, len(expected) + 1):
        best = max(closed_sets(size), key=lambda paths: static_tau([trace], Topology.of(paths)))
        assert set(optimal_tree([trace], size).paths) == set(best) == set(expected[:size])


@settings(deadline=None)
@given(ROWS, st.integers(1, 4))
@example([[1], [1], [MISS], [0]], 1)  # Of the steps of (1,) as many see 0, but (0,) gains nothing.
@example([[0, 1, 0], [0, 0, 1], [0, 0, 1], [0, MISS, 0], [0, 0, 1], [0, 0, 1]], 4)  # (0, 1), the last, costs a step.
def test_no_other_path_of_the_text_would_have_saved_more_steps(rows: list[list[int]], nodes: int) -> None:
    trace = trace_of(rows)
    order = optimal_order([trace], nodes)
    seen = {tuple(row[:length]) for row in rows for length in range(1, len(row) + 1)}
    for size in range(1, len(order) + 1):
        before = order[: size - 1]
        others = [path for path in UNIVERSE if path not in before and (len(path) == 1 or path[:-1] in before)]
        others = [path for path in others if path in seen]  # any other changes nothing
        best = max(static_tau([trace], Topology.of([*before, path])) for path in others)
        assert static_tau([trace], Topology.of(order[:size])) >= best


def test_positions_count_as_often_as_steps_start_there() -> None:
    # Calm stretches are crossed in a few steps, so most steps start where only the second guess is right.
    calm, hard = [0, 0, 0, 0], [1, MISS, MISS, MISS]
    trace = trace_of(([calm] * 9 + [hard, [MISS] * 4] * 3) * 20)
    over_all = Topology.of([path for path, _ in most_probable_paths(trace.ranks.numpy(), 4)])
    visited = optimal_tree([trace], 4)
    assert (1,) not in over_all.paths
    assert (1,) in visited.paths
    assert static_tau([trace], visited) > static_tau([trace], over_all)


@given(ROWS)
def test_every_beginning_of_the_order_is_a_tree(rows: list[list[int]]) -> None:
    order = optimal_order([trace_of(rows)], 8)
    trees = [Topology.of(order[:size]) for size in range(1, len(order) + 1)]
    assert [tree.nodes for tree in trees] == list(range(1, len(order) + 1))
    assert is_nested(trees)


def test_heads_that_are_never_right_get_no_tree() -> None:
    hopeless = trace_of([[MISS, 0], [MAX_RANK, 0]])
    assert optimal_order([hopeless], 8) == []
    assert optimal_tree([hopeless], 8) == Topology.root_only()


def test_trees_that_do_not_hold_one_another_are_not_nested() -> None:
    assert not is_nested([Topology.of([(0,)]), Topology.of([(1,), (2,)])])
