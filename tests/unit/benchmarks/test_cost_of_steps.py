import pytest

from benchmarks.cost import SIZES, error, held_out, summary
from entmtp.policies.step_cost import StepCost
from entmtp.trees.bank import bundled_bank, load_bank
from entmtp.trees.topology import Topology

COST = StepCost(
    nodes=[0, 2],
    verify_ms=[10.0, 14.0],
    narrow_draft_ms=[1.0],
    wide_draft_ms=[1.0],
    wide_nodes=63,
    hardware="test",
)


def test_held_out_trees_are_of_every_depth_and_lie_between_the_measured_sizes() -> None:
    trees = held_out(load_bank(bundled_bank("gsm8k", "hydra")))
    assert {tree.max_depth for tree in trees} == {0, 1, 2, 3, 4}
    assert {tree.nodes for tree in trees} <= set(SIZES)
    assert len({tree.paths for tree in trees}) == len(trees)


def test_errors_are_relative_to_what_was_measured() -> None:
    plain, one = Topology.root_only(), Topology.of([(0,)])
    assert error(COST, plain, 8.0) == pytest.approx(0.25)
    assert summary(COST, {plain: 8.0, one: 13.0}) == [2, "+12.5%", "12.5%", "25.0%"]
