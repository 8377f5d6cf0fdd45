"""Figures of the study: chosen trees, the distribution of entropy, and the frontier of static trees."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from entmtp import methods
from entmtp.evaluation.analysis.pareto import ParetoPoint
from entmtp.evaluation.analysis.summary import ArmSummary, Summary
from entmtp.evaluation.analysis.tree_sizes import COMMON, SIZES, plain_entropies, size_of
from entmtp.evaluation.report.plot_style import INK, Plot, line_colour, panels, save, style_context
from entmtp.methods import colour

_MARKS = {"medusa": ("o", "--"), "hydra": ("s", "-")}  # point and line by kind of heads
_NODE_TICKS = (0, 1, 2, 4, 8, 16, 32, 64, 128)
_LEAST_LABELLED = 9  # percent of the steps from which a part of a bar is wide enough for its label


def draw_study_plots(folder: Path, summary: Summary, steps: pa.Table, pareto: Sequence[ParetoPoint]) -> list[Plot]:
    """Draw every figure of the study that the rows and the points allow into `folder`."""
    with style_context():
        plots = [_draw_tree_sizes(folder, summary), _draw_entropies(folder, summary, steps)]
        if shown := [point for point in pareto if point.suite in summary.suites]:
            plots += [_draw_taus(folder, summary, shown), _draw_speeds(folder, summary, shown)]
    return [plot for plot in plots if plot is not None]


def size_name(nodes_from: int, nodes_to: int | None) -> str:
    """Name of a range of sizes: '5-8', '2', or '33+'."""
    if nodes_to is None:
        return f"{nodes_from}+"
    return str(nodes_from) if nodes_from == nodes_to else f"{nodes_from}-{nodes_to}"


def _draw_tree_sizes(folder: Path, summary: Summary) -> Plot | None:
    suites = list(dict.fromkeys(row.suite for row in summary.tree_shares))
    arms = list(dict.fromkeys(row.arm for row in summary.tree_shares))
    if not suites:
        return None
    figure, axes = panels(len(suites), height=1.1 + 0.36 * len(arms))
    for axis, suite in zip(axes, suites, strict=True):
        _stack(axis, summary, suite, arms)
        axis.set_title(summary.label(suite))
        axis.set_yticks(range(len(arms)), arms)
        axis.set_xlabel("share of the arm's steps (%)")
        axis.grid(visible=False, axis="y")
    axes[0].set_xlim(0, 100)
    axes[0].invert_yaxis()
    _legend(figure, axes[0], "nodes", columns=len(SIZES))
    return save(
        figure,
        folder / "shares.png",
        "Sizes and shapes of the chosen trees",
        "Shares of steps by nodes of their tree, without the root; 0 is a plain step. Each part of a colour is a shape,"
        " with its depth x its width (most nodes of a level) where there is room; the last, pale part are shapes below"
        f" {COMMON:.0%} each. First repetition of each prompt.",
    )


def _stack(axis: Axes, summary: Summary, suite: str, arms: Sequence[str]) -> None:
    faces = {size: colormaps["viridis"](number / (len(SIZES) - 1)) for number, size in enumerate(SIZES)}
    for size, face in faces.items():
        axis.barh(
            0, 0, color=face, label=size_name(*size)
        )  # every size is in the legend, also where no arm of this panel chose it
    for position, arm in enumerate(arms):
        left = 0.0
        for row in (row for row in summary.tree_shares if (row.suite, row.arm) == (suite, arm)):
            size, width = size_of(row), 100 * row.share
            alpha = 0.45 if row.depth is None else 1.0
            axis.barh(
                position, width, left=left, height=0.75, color=faces[size], alpha=alpha, edgecolor="white", lw=0.6
            )
            if row.depth and width >= _LEAST_LABELLED:
                ink = "white" if SIZES.index(size) < len(SIZES) / 2 else INK  # dark colours come first
                label = f"{row.depth}x{row.width}"
                axis.text(left + width / 2, position, label, ha="center", va="center", fontsize=7, color=ink)
            left += width


def _draw_entropies(folder: Path, summary: Summary, steps: pa.Table) -> Plot | None:
    found = plain_entropies(steps, summary.suites)
    if not found:
        return None
    figure = Figure(figsize=(12, 4.2), layout="constrained")
    axis = figure.subplots()
    for number, (suite, values) in enumerate(found.items()):
        label = f"{summary.label(suite)}, {len(values)} positions"
        axis.ecdf(values, color=line_colour(number), linewidth=1.8, label=label)
    axis.set_xlim(0, 1.02 * max(float(values.max()) for values in found.values()) or 1)
    axis.set_ylim(0, 1.01)
    axis.set_xlabel("entropy of the model's next token (nats)")
    axis.set_ylabel("share of positions at most that")
    axis.legend(loc="lower right", frameon=False, fontsize=9)
    return save(
        figure,
        folder / "entropy-distribution.png",
        "Distribution of entropy",
        "Empirical distribution functions over every position of the texts, as plain decoding visits them. The further "
        "left a line, the surer the model.",
    )


def _draw_taus(folder: Path, summary: Summary, points: Sequence[ParetoPoint]) -> Plot:
    figure, axes = _frontiers(summary, points, lambda point: point.tau)
    axes[0].set_ylim(bottom=1)
    figure.supylabel("tokens per step (tau)", fontsize=10)
    _legend(figure, axes[0], None, columns=2)
    return save(
        figure,
        folder / "pareto-tau.png",
        "Tokens per step of the best static tree of each size",
        "Expected on the calibration's texts, the root included. No tree of as many nodes is expected to gain more.",
    )


def _draw_speeds(folder: Path, summary: Summary, points: Sequence[ParetoPoint]) -> Plot:
    figure, axes = _frontiers(summary, points, lambda point: point.tokens_per_second)
    suites = [suite for suite in summary.suites if any(point.suite == suite for point in points)]
    constant = methods.of_constant_trees()
    for axis, suite in zip(axes, suites, strict=True):
        for arm in (row for row in summary.arms if row.suite == suite and row.arm in constant):
            _draw_measured(axis, arm)
    axes[0].set_ylim(bottom=0)
    figure.supylabel("tokens per second", fontsize=10)
    _legend(figure, axes[0], None, columns=4)
    return save(
        figure,
        folder / "pareto-speed.png",
        "Speed of the best static tree of each size, predicted and measured",
        "Lines: expected tokens per step over the step's time by this machine's step cost, on the calibration's texts. "
        "Points: arms as they were measured on the scored prompts, prefill included, at their mean nodes per step; "
        "medusa and hydra use the published tree, which is not on the line.",
    )


def _frontiers(
    summary: Summary, points: Sequence[ParetoPoint], height: Callable[[ParetoPoint], float]
) -> tuple[Figure, list[Axes]]:
    """A panel per suite with a line per kind of heads, `height` over nodes."""
    suites = [suite for suite in summary.suites if any(point.suite == suite for point in points)]
    figure, axes = panels(len(suites), height=3.2)
    for axis, suite in zip(axes, suites, strict=True):
        for kind in dict.fromkeys(point.heads for point in points):
            line = [point for point in points if (point.suite, point.heads) == (suite, kind)]
            nodes, heights = [point.nodes for point in line], [height(point) for point in line]
            axis.plot(nodes, heights, _MARKS.get(kind, ("", "-"))[1], color=colour(kind), label=f"{kind} heads")
        axis.set_title(summary.label(suite))
        axis.set_xlabel("nodes of the tree, without the root")
    most = max(point.nodes for point in points)
    ticks = [tick for tick in _NODE_TICKS if tick <= most + 1]
    axes[0].set_xscale("symlog", linthresh=1, linscale=0.5)
    axes[0].set_xlim(-0.15, 1.15 * most + 1)
    axes[0].set_xticks(ticks, list(map(str, ticks)))
    axes[0].minorticks_off()
    return figure, axes


def _draw_measured(axis: Axes, arm: ArmSummary) -> None:
    mark = _MARKS["medusa" if arm.arm.startswith("medusa") else "hydra"][0]
    axis.plot(
        arm.nodes, arm.tokens_per_second, mark, color=colour(arm.arm), markeredgecolor=INK, label=f"{arm.arm}, measured"
    )


def _legend(figure: Figure, axis: Axes, title: str | None, columns: int) -> None:
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, title=title, loc="outside lower center", ncols=columns, frameon=False, fontsize=8.5)
