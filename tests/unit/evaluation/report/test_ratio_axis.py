"""The logarithmic axis of speedups."""

import pytest
from matplotlib.figure import Figure

from entmtp.evaluation.report.plot_style import ratio_axis
from entmtp.intervals import Estimate


@pytest.mark.parametrize(
    ("low", "high", "shown"),
    [
        (0.9, 1.3, ["1", "1.5"]),
        (0.25, 3.1, ["0.5", "1", "2", "5"]),
        (0.04, 60.0, ["0.1", "0.3", "1", "3", "10", "30", "100"]),
        (0.002, 400.0, ["0.01", "0.1", "1", "10", "100", "1000"]),
    ],
)
def test_ticks_are_few_and_the_axis_holds_intervals_and_one(low: float, high: float, shown: list[str]) -> None:
    axis = Figure().subplots()
    ratio_axis(axis, [Estimate(1.0, low, high), Estimate(1.0, None, None)])
    left, right = axis.get_xlim()
    assert left < min(low, 1)
    assert right > max(high, 1)
    assert [tick.get_text() for tick in axis.get_xticklabels()] == shown


def test_without_an_interval_the_axis_is_around_one() -> None:
    axis = Figure().subplots()
    ratio_axis(axis, [])
    left, right = axis.get_xlim()
    assert left < 1 < right
