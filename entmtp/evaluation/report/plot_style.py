"""Style of the report's figures: colours, panels, intervals, files."""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from entmtp.files import write_whole
from entmtp.intervals import Estimate

INK = "#222222"
FAINT = "#666666"
_LINE_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
_PANELS_PER_ROW = 3
_WIDTH_INCHES = 12.0  # of a figure of several panels, so that letters have one size in all figures
_DOTS_PER_INCH = 130
_TICK_DIGITS = ((1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,))  # of a decade, from the finest
_MOST_TICKS = 7
_NUMBER_WIDTH = 0.2  # of the axis, for a number after the longest whisker


@dataclass(frozen=True, slots=True)
class Plot:
    """A figure on disk. `caption` explains it to a reader."""

    path: Path
    title: str
    caption: str


def style_context() -> AbstractContextManager[None]:
    """A context with the Matplotlib settings of every figure."""
    return mpl.rc_context(
        {
            "font.size": 10,
            "axes.titlesize": 11,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "axes.edgecolor": "#888888",
            "axes.labelcolor": INK,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": "#e4e4e4",
            "xtick.color": INK,
            "ytick.color": INK,
            "figure.titlesize": 13,
            "figure.titleweight": "bold",
        }
    )


def line_colour(number: int) -> str:
    """The colour of line ``number`` in a figure whose lines are not arms."""
    return _LINE_COLOURS[number % len(_LINE_COLOURS)]


def panels(count: int, height: float) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels of `height` inches with shared axes, at most three in a row."""
    columns = 2 if count == 4 else min(count, _PANELS_PER_ROW)
    rows = -(-count // columns)
    figure = Figure(figsize=(_WIDTH_INCHES, height * rows + 0.9), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for unused in grid[count:]:
        unused.remove()
    for axis in grid[:count]:
        axis.tick_params(labelbottom=True)
    return figure, list(grid[:count])


def whiskers(estimates: Sequence[Estimate]) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Distances below and above each value, `[2, estimates]`; nan, which draws nothing, where there is no interval."""
    below = [np.nan if row.low is None else max(0.0, row.value - row.low) for row in estimates]
    above = [np.nan if row.high is None else max(0.0, row.high - row.value) for row in estimates]
    return np.array([below, above])


def ratio_axis(axis: Axes, ratios: Sequence[Estimate]) -> None:
    """Make the x axis logarithmic, and wide enough for 1, the intervals of ``ratios`` and numbers after them."""
    low = min((row.low for row in ratios if row.low is not None), default=1.0)
    high = max((row.high for row in ratios if row.high is not None), default=1.0)
    low, high = min(low, 0.8) / 1.1, 1.1 * max(high, 1.25)
    high *= (high / low) ** _NUMBER_WIDTH
    axis.set_xscale("log")
    axis.set_xlim(low, high)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)))
    for digits in _TICK_DIGITS:
        ticks = [digit * 10.0**decade for decade in decades for digit in digits if low <= digit * 10.0**decade <= high]
        if len(ticks) <= _MOST_TICKS:
            break
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.minorticks_off()


def save(figure: Figure, path: Path, title: str, caption: str) -> Plot:
    """Give the figure its title and write it as a PNG."""
    figure.suptitle(title, x=0.01, ha="left")
    write_whole(path, lambda unfinished: figure.savefig(unfinished, format="png", dpi=_DOTS_PER_INCH))
    return Plot(path, title, caption)
