from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from entmtp.errors import EntMTPError
from entmtp.policies.hardware_profile import load_profile
from entmtp.policies.step_cost import BatchedCost, CostTable, StepCost, hardware_name, interpolated, rounded_context
from entmtp.trees.published import published_tree
from entmtp.trees.topology import Topology

CHAIN = Topology.of([(0,) * depth for depth in range(1, 5)])


def table(**changes: Any) -> StepCost:
    fields: dict[str, Any] = {
        "nodes": [0, 2, 6],
        "verify_ms": [10.0, 14.0, 30.0],
        "narrow_draft_ms": [1.0, 2.0, 3.0, 4.0],
        "wide_draft_ms": [2.0, 4.0, 6.0, 9.0],
        "wide_nodes": 14,
        "hardware": "test",
    }
    return StepCost(**(fields | changes))


def wide(nodes: int) -> Topology:
    return Topology.of([(rank,) for rank in range(nodes)])


def test_between_grid_points_it_is_linear() -> None:
    cost = table()
    assert cost(Topology.root_only()) == 10.0
    assert cost(wide(2)) == pytest.approx(14 + 1 + 1 / 13)
    assert cost(wide(3)) == pytest.approx(18 + 1 + 2 / 13)
    assert cost(CHAIN) == pytest.approx(22 + 4.0)
    assert cost.draft(Topology.of([*CHAIN.paths, *((rank,) for rank in range(1, 11))])) == 9.0


@given(st.sets(st.integers(0, 20), min_size=2), st.integers(0, 25), st.integers(0, 99))
def test_interpolation_is_numpys(points: set[int], at: int, seed: int) -> None:
    grid = sorted(points)
    values = np.random.default_rng(seed).uniform(1, 50, len(grid)).tolist()
    assert interpolated(at, grid, values) == np.interp(at, grid, values)


def test_a_tree_beyond_the_grid_is_not_free() -> None:
    cost = table()
    assert cost(wide(16)) == pytest.approx(30 + 10 * 4 + 2)
    falling = table(verify_ms=[10.0, 31.0, 30.0])
    assert falling(wide(16)) == pytest.approx(30 + 2)


def test_more_depth_than_was_measured_costs_as_the_deepest() -> None:
    deep = Topology.of([(0,) * depth for depth in range(1, 7)])
    assert table().draft(deep) == pytest.approx(4 + 5 * 2 / 10)


def test_where_trees_are_padded_all_of_a_width_cost_the_same() -> None:
    fields = {"nodes": [0, 1, 3, 7, 15], "verify_ms": [10.0, 12.0, 13.0, 14.0, 20.0]}
    plain, padded = table(**fields), table(**fields, padded=True)
    assert [padded.without_draft(nodes) for nodes in range(9)] == [10, 12, 13, 13, 14, 14, 14, 14, 20]
    assert padded.without_draft(16) == plain.without_draft(23), "beyond the grid too"
    assert padded.draft(wide(4)) == padded.draft(wide(7)) == plain.draft(wide(7)) > plain.draft(wide(4))
    assert padded.draft(Topology.root_only()) == 0
    costs = BatchedCost(measured={1: at_any(padded), 3: at_any(padded)})
    assert costs.padded
    assert costs.table(2).costs[0].without_draft(2) == 13


def test_a_file_says_that_trees_are_padded_and_one_that_does_not_is_as_it_was() -> None:
    assert "padded" not in table().model_dump_json()
    for cost in (table(), table(padded=True)):
        assert StepCost.model_validate_json(cost.model_dump_json()) == cost
        assert CostTable.model_validate_json(at_any(cost).model_dump_json()).padded is cost.padded


@pytest.mark.parametrize(
    "changes",
    [
        {"nodes": [1, 2, 6]},
        {"nodes": [0, 6, 2]},
        {"nodes": [0, 2, 2]},
        {"verify_ms": [10.0, 14.0]},
        {"verify_ms": [10.0, 0.0, 30.0]},
        {"verify_ms": [10.0, float("nan"), 30.0]},
        {"narrow_draft_ms": []},
        {"wide_draft_ms": [2.0, 4.0, 6.0]},
        {"wide_draft_ms": [2.0, 4.0, float("inf"), 9.0]},
        {"unknown": 1},
    ],
)
def test_a_table_with_holes_is_an_error(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="validation error"):
        table(**changes)


def test_hardware_says_how_many_threads_compute() -> None:
    before = torch.get_num_threads()
    names = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        names.append(hardware_name(torch.device("cpu")))
    torch.set_num_threads(before)
    assert names[0] != names[1]
    assert f"torch {torch.__version__}" in names[0]


def test_between_measured_numbers_of_requests_it_is_linear() -> None:
    double = table(nodes=[0, 6], verify_ms=[20.0, 60.0], narrow_draft_ms=[2.0, 4.0, 6.0, 8.0])
    cost = BatchedCost(measured={1: at_any(table()), 3: at_any(double, spread=0.2)})
    assert cost.table(1).at(160) == table()
    assert cost.table(3).at(160) == double
    between = cost.table(2).at(160)
    for nodes in (0, 1, 2, 5, 6, 9):
        assert between.without_draft(nodes) == pytest.approx(
            (table().without_draft(nodes) + double.without_draft(nodes)) / 2
        )
    assert between.narrow_draft_ms == [1.5, 3.0, 4.5, 6.0]
    assert cost.table(2).spread == 0.2


def test_of_more_requests_than_were_measured_nothing_is_known() -> None:
    with pytest.raises(EntMTPError, match="known for up to 2 requests, not for 5; measure with more slots"):
        BatchedCost(measured={1: at_any(table()), 2: at_any(table())}).table(5)
    with pytest.raises(ValueError, match="one request must be among"):
        BatchedCost(measured={2: at_any(table())})
    for cost in (table(), at_any(table())):
        with pytest.raises(EntMTPError, match=r"^batch: .* 1 request, not for 2"):
            cost.of_batch(2, 160)


def at_any(cost: StepCost, spread: float = 0.0) -> CostTable:
    return CostTable(contexts=[160], costs=[cost], spread=spread)


def longer(verify: float, draft: float = 1.0) -> StepCost:
    """:func:`table` where verifying takes so much more per node, and drafting so many times as long."""
    return table(
        verify_ms=[10.0 + verify, 14.0 + 3 * verify, 30.0 + 7 * verify],
        narrow_draft_ms=[draft * ms for ms in (1.0, 2.0, 3.0, 4.0)],
        wide_draft_ms=[draft * ms for ms in (2.0, 4.0, 6.0, 9.0)],
    )


def test_between_measured_contexts_it_is_linear_and_beyond_them_the_last_slope_goes_on() -> None:
    cost = CostTable(contexts=[100, 200, 600], costs=[longer(0), longer(1), longer(3, draft=2.0)])
    expected = {1: (0, 1.0), 100: (0, 1.0), 150: (0.5, 1.0), 200: (1, 1.0), 400: (2, 1.5), 600: (3, 2.0), 1000: (5, 3)}
    for context, (verify, draft) in expected.items():
        here, there = cost.at(context), longer(verify, draft)
        assert here.verify_ms == pytest.approx(there.verify_ms), context
        assert here.draft(CHAIN) == pytest.approx(there.draft(CHAIN)), context
    assert cost(CHAIN) == cost.at(160)(CHAIN) == cost.of_batch(1, 160)(CHAIN)
    assert cost.draft(CHAIN) == cost.at(160).draft(CHAIN)


def test_a_longer_context_than_was_measured_is_not_cheaper() -> None:
    cost = CostTable(contexts=[100, 200], costs=[longer(1), longer(0)])
    assert cost.at(10_000) == longer(0)


@pytest.mark.parametrize(
    "changes",
    [
        {"contexts": [200, 100]},
        {"contexts": [100]},
        {"contexts": [0, 100]},
        {"costs": []},
        {"costs": [table(), table(narrow_draft_ms=[1.0], wide_draft_ms=[1.0])]},
        {"spread": -0.1},
        {"spread": float("nan")},
        {"format": 1},
    ],
)
def test_a_table_of_contexts_with_holes_is_an_error(changes: dict[str, Any]) -> None:
    fields: dict[str, Any] = {"contexts": [100, 200], "costs": [table(), table()]}
    CostTable(**fields)
    with pytest.raises(ValueError, match="validation error"):
        CostTable(**(fields | changes))


def test_between_numbers_of_requests_each_context_counts() -> None:
    short, both = (
        CostTable(contexts=[100], costs=[longer(0)]),
        CostTable(contexts=[100, 200], costs=[longer(0), longer(2)]),
    )
    cost = BatchedCost(measured={1: short, 3: both})
    assert cost.table(2).at(200).verify_ms == pytest.approx(longer(1).verify_ms)


@given(st.lists(st.integers(0, 100_000), min_size=1, max_size=8))
def test_a_rounded_context_is_near_the_mean_and_one_of_few(contexts: list[int]) -> None:
    rounded, mean = rounded_context(contexts), max(1.0, sum(contexts) / len(contexts))
    assert 2**-0.25 * mean - 0.5 <= rounded <= 2**0.25 * mean + 0.5
    assert rounded_context([rounded]) == rounded
    assert rounded in {round(2 ** (power / 2)) for power in range(40)}


def test_rounding_the_context_hardly_moves_one_tree_against_another() -> None:
    profile = load_profile("h200-vicuna-7b")
    costs = CostTable(contexts=[512, 4096], costs=[profile.cost(1, context) for context in (512, 4096)])
    plain, published = Topology.root_only(), published_tree()
    for context in range(512, 4097, 64):
        exact, rounded = costs.at(context), costs.at(rounded_context([context]))
        ratio = rounded(published) / rounded(plain) / (exact(published) / exact(plain))
        assert ratio == pytest.approx(1, abs=0.03)
