"""Predictions on made-up traces."""

import pytest

from benchmarks.predict import METHODS, flat, policies, row
from entmtp.scheduling.replay import predicted
from entmtp.trees.topology import Topology
from tests.small import drawn_trace, small_bank

TRACES = [drawn_trace(300, [0.5, 0.15], heads=4, seed=seed) for seed in (1, 2)]


def steep(topology: Topology) -> float:
    return 1.0 + 0.4 * topology.nodes


@pytest.mark.parametrize("cost", [flat, steep])
def test_hindsight_beats_every_tree_of_the_bank(cost: object) -> None:
    assert callable(cost)
    methods = policies(small_bank(), cost, 4)
    assert tuple(methods) == METHODS
    found = {name: predicted(TRACES, methods[name], cost) for name in METHODS}
    assert found["oracle"].speedup >= max(found["best static tree"].speedup, found["ladder"].speedup, 1.0)


def test_where_trees_are_free_a_speedup_is_tau() -> None:
    methods = policies(small_bank(), flat, 4)
    for name in METHODS:
        found = predicted(TRACES, methods[name], flat)
        assert found.speedup == pytest.approx(found.tau)
    best = methods["best static tree"](TRACES[0])
    assert predicted(TRACES, lambda trace: best, flat).tau > 1.5


def test_a_row_has_a_cell_per_method() -> None:
    cells = row(TRACES, small_bank(), steep)
    assert len(cells) == len(METHODS)
    assert all(cell.endswith(")") for cell in cells)
