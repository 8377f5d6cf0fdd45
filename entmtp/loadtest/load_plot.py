"""Figure of a load test: throughput against latency, a line for each endpoint and loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from entmtp.evaluation.report.plot_style import Plot, line_colour, save, style_context
from entmtp.loadtest.levels import Level
from entmtp.loadtest.load_summary import LoadSummary

_PANELS = {"ttft": "until the first token", "tpot": "per token after the first", "e2e": "of the whole answer"}
_CAPTION = (
    "Points: the median latency, with the number of users (closed loop, solid) or of requests a second (open loop, "
    "dashed) next to it. Whiskers reach to the 99th percentile. Up and left is better."
)

Summaries = Mapping[Level, Sequence[LoadSummary]]


def draw_load(path: Path, summaries: Summaries) -> Plot:
    """Draw total tokens per second over latency in milliseconds. Levels without an answer are omitted."""
    with style_context():
        figure = Figure(figsize=(13, 4.6), layout="constrained")
        axes = figure.subplots(1, len(_PANELS), sharey=True)
        for axis, (quantity, words) in zip(axes, _PANELS.items(), strict=True):
            for number, endpoint in enumerate(_endpoints(summaries)):
                _line(axis, summaries, endpoint, quantity, closed=True, colour=line_colour(number))
                _line(axis, summaries, endpoint, quantity, closed=False, colour=line_colour(number))
            axis.set_xscale("log")
            axis.set_xlabel(f"ms {words}")
            axis.set_ylim(bottom=0)
        axes[0].set_ylabel("tokens/s in total")
        if axes[0].get_legend_handles_labels()[1]:
            axes[-1].legend(*axes[0].get_legend_handles_labels(), loc="best", fontsize=9)
        return save(figure, path, "Throughput against latency", _CAPTION)


def _endpoints(summaries: Summaries) -> list[str]:
    return list(dict.fromkeys(one.endpoint for found in summaries.values() for one in found))


def _line(axis: Axes, summaries: Summaries, endpoint: str, quantity: str, *, closed: bool, colour: str) -> None:
    points = [
        (level, one.tokens_per_second, one.percentiles[quantity])
        for level, found in summaries.items()
        for one in found
        if one.endpoint == endpoint and quantity in one.percentiles and (level.users is not None) == closed
    ]
    if not points:
        return
    median = [1e3 * times[50] for _, _, times in points]
    speed = [tokens for _, tokens, _ in points]
    to_p99 = [1e3 * (times[99] - times[50]) for _, _, times in points]
    label = f"{endpoint}, {'closed' if closed else 'open'} loop"
    axis.errorbar(median, speed, xerr=[[0.0] * len(points), to_p99], color=colour, alpha=0.35, fmt="none", capsize=2)
    axis.plot(median, speed, marker="o", markersize=4, color=colour, linestyle="-" if closed else "--", label=label)
    for (level, tokens, _), latency in zip(points, median, strict=True):
        text = f"{level.users or level.rate:g}"
        axis.annotate(text, (latency, tokens), textcoords="offset points", xytext=(4, 4), fontsize=8, color=colour)
