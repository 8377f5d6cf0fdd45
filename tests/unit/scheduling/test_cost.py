import json
from pathlib import Path
from typing import Any

import pytest
import torch

from entmtp.errors import EntMTPError
from entmtp.scheduling.cost import BatchedCost, StepCost, cost_file, hardware_name, read_cost, write_cost
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


def test_a_tree_behind_the_grid_is_not_free() -> None:
    cost = table()
    assert cost(wide(16)) == pytest.approx(30 + 10 * 4 + 2)
    falling = table(verify_ms=[10.0, 31.0, 30.0])
    assert falling(wide(16)) == pytest.approx(30 + 2)


def test_more_depth_than_was_measured_costs_as_the_deepest() -> None:
    deep = Topology.of([(0,) * depth for depth in range(1, 7)])
    assert table().draft(deep) == pytest.approx(4 + 5 * 2 / 10)


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
def test_a_table_with_holes_is_an_error(changes: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="validation error"):
        table(**changes)
    path = tmp_path / "cost.json"
    path.write_text(json.dumps(table().model_dump() | changes))
    with pytest.raises(EntMTPError, match=r"cost\.json is not a complete step-cost table; remove it"):
        read_cost(path)


def test_it_is_kept_per_model_heads_hardware_and_type(tmp_path: Path) -> None:
    path = cost_file(tmp_path, "a CPU", "model", "heads", "torch.float32")
    assert read_cost(path) is None
    write_cost(path, table())
    assert read_cost(path) == table()
    assert list(path.parent.iterdir()) == [path]
    others = {
        cost_file(tmp_path, "another CPU", "model", "heads", "torch.float32"),
        cost_file(tmp_path, "a CPU", "other model", "heads", "torch.float32"),
        cost_file(tmp_path, "a CPU", "model", "other heads", "torch.float32"),
        cost_file(tmp_path, "a CPU", "model", "heads", "torch.bfloat16"),
    }
    assert len(others - {path}) == 4


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
    cost = BatchedCost(measured={1: table(), 3: double})
    assert cost.of_batch(1) == table()
    assert cost.of_batch(3) == double
    between = cost.of_batch(2)
    for nodes in (0, 1, 2, 5, 6, 9):
        assert between.but_draft(nodes) == pytest.approx((table().but_draft(nodes) + double.but_draft(nodes)) / 2)
    assert between.narrow_draft_ms == [1.5, 3.0, 4.5, 6.0]


def test_of_more_requests_than_were_measured_nothing_is_known() -> None:
    with pytest.raises(EntMTPError, match="known for up to 2 requests, not for 5; measure with more slots"):
        BatchedCost(measured={1: table(), 2: table()}).of_batch(5)
    with pytest.raises(ValueError, match="one request must be among"):
        BatchedCost(measured={2: table()})
