"""Policies in a world in which the heads' chances are true, against every policy, tried out."""

from collections.abc import Callable, Sequence
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from entmtp.calibration import known_chances as module
from entmtp.calibration.known_chances import Outlook, expected_tokens, known_chances, known_outcomes, outlook
from entmtp.trees.probability_calibration import ProbabilityCalibration
from entmtp.trees.topology import Path, Topology
from entmtp.trees.trace_replay import accepted_length
from tests.helpers.examples import examples
from tests.helpers.small_cases import Estimating, Scripted, small_chances, small_estimating_chances, small_sharp_chances

PATHS: list[Path] = [(0,), (1,), (0, 0), (0, 1), (1, 0), (0, 0, 0)]
SHARES = st.floats(0.0, 0.5)


@st.composite
def outlooks(draw: st.DrawFn) -> Outlook:
    """Chances of :data:`PATHS`, each a share of its parent's, two siblings at most the whole."""
    seen: dict[Path, float] = {}
    for path in PATHS:
        seen[path] = seen.get(path[:-1], 1.0) * draw(SHARES)
    return Outlook(seen, [sum(seen[path] for path in PATHS if len(path) == depth) for depth in (1, 2, 3)])


@st.composite
def costs(draw: st.DrawFn) -> Callable[[Topology], float]:
    """Milliseconds by nodes, whatever they are, and by depth, where more levels never take less."""
    of_nodes = draw(st.lists(st.floats(0.2, 3.0), min_size=7, max_size=7))
    of_depth = sorted(draw(st.lists(st.floats(0.0, 1.0), min_size=4, max_size=4)))
    return lambda tree: of_nodes[tree.nodes] + of_depth[tree.max_depth]


def every_tree() -> list[Topology]:
    """All prefix-closed sets of :data:`PATHS`."""
    chosen = [set(some) for size in range(len(PATHS) + 1) for some in combinations(PATHS, size)]
    closed = [some for some in chosen if all(path[:-1] in some or len(path) == 1 for path in some)]
    return [Topology.of(some) if some else Topology.root_only() for some in closed]


TREES = every_tree()


def outcomes(seen: Outlook) -> list[tuple[Path, float]]:
    """Paths at which the right path leaves the known paths, with their chances."""
    known: dict[Path, float] = {(): 1.0, **seen.paths}
    return [
        (path, chance - sum(known[child] for child in seen.paths if child[:-1] == path))
        for path, chance in known.items()
    ]


def rate_of(expected: module.Expected) -> float:
    return float(expected.tokens.sum() / expected.ms.sum())


@given(outlooks())
def test_expected_tokens_are_those_of_all_outcomes(seen: Outlook) -> None:
    for tree in TREES:
        by_outcome = sum(chance * (1 + accepted_length(tree, path)) for path, chance in outcomes(seen))
        assert expected_tokens(seen, tree) == pytest.approx(by_outcome)


@settings(max_examples=examples(per_hundred=40))
@given(st.lists(outlooks(), min_size=1, max_size=2), costs())
def test_no_policy_that_sees_the_same_chances_is_faster(
    steps: Sequence[Outlook], cost: Callable[[Topology], float]
) -> None:
    gained = [np.array([expected_tokens(seen, tree) for tree in TREES]) for seen in steps]
    spent = np.array([cost(tree) for tree in TREES])
    fastest = max(
        sum(gain[at] for gain, at in zip(gained, chosen, strict=True)) / sum(spent[at] for at in chosen)
        for chosen in product(range(len(TREES)), repeat=len(steps))
    )
    assert rate_of(known_chances(steps, cost)) == pytest.approx(fastest)


@settings(max_examples=examples(per_hundred=40))
@given(outlooks(), costs())
def test_hindsight_is_the_best_of_all_that_see_the_outcome(seen: Outlook, cost: Callable[[Topology], float]) -> None:
    found = known_outcomes([seen], cost)
    ends = outcomes(seen)
    begins = [[Topology.of([path[:at] for at in range(1, n + 1)]) if n else Topology.root_only()
               for n in range(len(path) + 1)] for path, _ in ends]  # fmt: skip
    fastest = max(
        sum(chance * (1 + tree.nodes) for (_, chance), tree in zip(ends, chosen, strict=True))
        / sum(chance * cost(tree) for (_, chance), tree in zip(ends, chosen, strict=True))
        for chosen in product(*begins)
    )
    assert rate_of(found) == pytest.approx(fastest)


@given(st.lists(outlooks(), min_size=1, max_size=3))
def test_with_costs_that_grow_hindsight_is_faster_than_chances(steps: Sequence[Outlook]) -> None:
    def cost(tree: Topology) -> float:
        return 1.0 + 0.1 * tree.nodes + 0.05 * tree.max_depth

    assert rate_of(known_outcomes(steps, cost)) >= rate_of(known_chances(steps, cost)) * (1 - 1e-9)


def test_chances_multiply_along_paths_and_siblings_share_their_parents() -> None:
    sure = ProbabilityCalibration(slope=[1.0] * 2, offset=[0.0] * 2, follow=[[0.5, 0.2]] * 2)
    seen = outlook(Scripted([[0.5, 0.2], [0.9, 0.6]]), sure, Topology.root_only())
    assert seen.paths[0,] == pytest.approx(0.5)
    assert seen.paths[1, 1] == pytest.approx(0.2 * 0.6 / 1.5)
    assert seen.paths[0, 0] + seen.paths[0, 1] == pytest.approx(0.5)
    assert seen.reach == pytest.approx([0.7, 0.7])


def test_chances_are_those_that_the_dynamic_policy_reads_where_they_depend_on_sharpness() -> None:
    levels = [[0.5, 0.3, 0.01, 0.01], [0.4, 0.1, 0.05, 0.05]]
    first, second = (small_sharp_chances().probabilities(at, np.log(level).tolist()) for at, level in enumerate(levels))
    seen = outlook(
        Scripted(levels), small_sharp_chances().model_copy(update={"slope": [0.5] * 2}), Topology.root_only()
    )
    assert sum(first) < 1
    assert sum(second) < 1
    assert seen.paths[1,] == pytest.approx(first[1])
    assert seen.paths[0, 2] == pytest.approx(first[0] * second[2])


def test_chances_are_those_that_the_dynamic_policy_reads_where_they_depend_on_estimates() -> None:
    levels = [[0.3, 0.2, 0.01, 0.01], [0.3, 0.1, 0.05, 0.05]]
    chances = small_estimating_chances()
    first, second = (chances.probabilities(at, np.log(level).tolist(), 0.0, -2.0) for at, level in enumerate(levels))
    seen = outlook(Estimating([-2.0], levels), chances.model_copy(update={"slope": [0.5] * 2}), Topology.root_only())
    assert sum(first) < 1
    assert sum(second) < 1
    assert seen.paths[1,] == pytest.approx(first[1])
    assert seen.paths[0, 2] == pytest.approx(first[0] * second[2])


def test_the_likeliest_paths_are_kept_with_their_beginnings_and_the_trees_that_were_chosen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    levels = [[0.6, 0.2, 0.1, 0.05]] * 4
    whole = outlook(Scripted(levels), small_chances(), Topology.root_only())
    monkeypatch.setattr(module, "MAX_PATHS", 5)
    unlikely = Topology.of([(3,), (3, 3)])
    seen = outlook(Scripted(levels), small_chances(), unlikely)
    likeliest = sorted(whole.paths, key=lambda path: -whole.paths[path])[:5]
    assert set(seen.paths) == {*likeliest, *unlikely.paths}
    assert (3, 3) not in likeliest
    assert all(seen.paths[path] == whole.paths[path] for path in likeliest)
    assert all(path[:-1] in whole.paths for path in whole.paths if len(path) > 1)
    assert len(whole.paths) == 63
    assert seen.reach[0] == whole.reach[0] == sum(whole.paths[rank,] for rank in range(4))
    assert sum(whole.paths.values()) < sum(whole.reach), "guesses that no tree takes may be right too"
