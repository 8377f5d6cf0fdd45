"""Predictions on made-up traces."""

from benchmarks.predict import METHODS, row
from entmtp.evaluation.replay import cost_of
from tests.small import drawn_trace, small_bank


def test_a_row_has_a_cell_per_method() -> None:
    traces = [drawn_trace(300, [0.5, 0.15], heads=4, seed=seed) for seed in (1, 2, 3)]
    cells = row(traces, small_bank(), cost_of("flat"))
    assert len(cells) == len(METHODS)
    assert all("x [" in cell and cell.endswith(")") for cell in cells)
