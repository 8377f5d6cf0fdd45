"""The report's figures: speedup, tau, trees over time, and entropy against accepted tokens."""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from entmtp import methods
from entmtp.evaluation.analysis.summary import ALL_SUITES, SAMPLE, Summary
from entmtp.evaluation.report.plot_style import FAINT, INK, Plot, panels, ratio_axis, save, style_context, whiskers
from entmtp.intervals import FEWEST_PROMPTS, Estimate, times
from entmtp.methods import AUTOREGRESSIVE, colour


def draw_plots(folder: Path, summary: Summary, steps: pa.Table) -> list[Plot]:
    """Draw every figure that the rows allow into `folder`."""
    with style_context():
        plots = [
            _draw_speedups(folder, summary),
            _draw_taus(folder, summary),
            _draw_tree_choice(folder, summary, steps),
            _draw_entropy(folder, summary),
        ]
    return [plot for plot in plots if plot is not None]


def _draw_speedups(folder: Path, summary: Summary) -> Plot | None:
    suites = [ALL_SUITES, *summary.suites] if len(summary.suites) > 1 else summary.suites
    shown: dict[str, dict[str, Estimate]] = {suite: {} for suite in suites}
    for row in summary.speedups:
        if row.baseline == AUTOREGRESSIVE and row.suite in shown:
            shown[row.suite][row.arm] = row.ratio
    if not any(shown.values()):
        return None
    figure, axes = _bars(summary, shown, "times as fast as autoregressive decoding, logarithmic", start=1)
    ratio_axis(axes[0], [row for estimates in shown.values() for row in estimates.values() if row.has_interval])
    return save(
        figure,
        folder / "speedup.png",
        "Speedup against autoregressive decoding" + _sample_mark(summary),
        "Bars begin at 1, the speed of autoregressive decoding: to the left an arm is slower, to the right faster. "
        "Whiskers are 95% intervals over prompts, each for its own comparison; one that crosses the line is "
        f"inconclusive. With fewer than {FEWEST_PROMPTS} prompts there is no interval, and so no bar.",
    )


def _draw_taus(folder: Path, summary: Summary) -> Plot:
    shown = {suite: {row.arm: row.tau for row in summary.arms if row.suite == suite} for suite in summary.suites}
    figure, axes = _bars(summary, shown, "tokens per step (tau, root included)", start=0)
    highest = max(row.high or row.value for estimates in shown.values() for row in estimates.values())
    axes[0].set_xlim(0, max(1.2, 1.25 * highest))
    return save(
        figure,
        folder / "tau.png",
        "Accepted tokens per step" + _sample_mark(summary),
        "Tokens gained per step, the root included, so autoregressive decoding is 1. A larger tree raises tau, and the "
        f"time of a step with it. Whiskers are 95% intervals over prompts, absent with fewer than {FEWEST_PROMPTS}.",
    )


def _bars(
    summary: Summary, shown: Mapping[str, Mapping[str, Estimate]], label: str, *, start: Literal[0, 1]
) -> tuple[Figure, list[Axes]]:
    """A panel of horizontal bars per suite, arms in the same order. Bars from 1 are ratios, drawn only with an
    interval."""
    arms = list(dict.fromkeys(arm for estimates in shown.values() for arm in estimates))
    figure, axes = panels(len(shown), height=0.7 + 0.3 * len(arms))
    for axis, (suite, estimates) in zip(axes, shown.items(), strict=True):
        for position, arm in enumerate(arms):
            if arm in estimates:
                _bar(axis, position, estimates[arm], colour(arm), start)
        axis.set_title(summary.label(suite))
        axis.axvline(1, color=INK, linewidth=1)
        axis.set_yticks(range(len(arms)), arms)
        axis.grid(visible=False, axis="y")
    axes[0].invert_yaxis()
    figure.supxlabel(label, fontsize=10)
    return figure, axes


def _bar(axis: Axes, position: int, estimate: Estimate, face: str, start: Literal[0, 1]) -> None:
    if not estimate.has_interval and start == 1:
        axis.text(start, position, " no bar: too few prompts", va="center", fontsize=8, color=FAINT)
        return
    axis.barh(position, estimate.value - start, left=start, color=face, height=0.7)
    whisker = axis.errorbar(estimate.value, position, xerr=whiskers([estimate]), color=INK, capsize=3, linewidth=1.2)
    for line in (*whisker.lines[1], *whisker.lines[2]):
        line.set_path_effects([withStroke(linewidth=1.9, foreground="white")])  # dark bars would hide it
    note = f"  {times(estimate.value)}" + ("" if estimate.has_interval else " (no interval)")
    axis.text(max(start, estimate.high or estimate.value), position, note, va="center", fontsize=8.5, color=INK)


def _draw_entropy(folder: Path, summary: Summary) -> Plot | None:
    suites = list(dict.fromkeys(row.suite for row in summary.entropy_bins))
    if not suites:
        return None
    figure, axes = panels(len(suites), height=2.7)
    for axis, suite in zip(axes, suites, strict=True):
        bins = [row for row in summary.entropy_bins if row.suite == suite]
        entropy, accepted = [row.entropy_mean for row in bins], [row.accepted for row in bins]
        axis.errorbar(
            entropy,
            [row.value for row in accepted],
            yerr=whiskers(accepted),
            fmt="o-",
            color=colour(bins[0].arm),
            ecolor=INK,
            capsize=3,
            markersize=5,
        )
        axis.set_title(summary.label(suite))
        corner = {"boxstyle": "square,pad=0.2", "facecolor": "white", "edgecolor": "none", "alpha": 0.8}
        note = _relation(summary, suite)
        axis.text(0.97, 0.96, note, ha="right", va="top", transform=axis.transAxes, fontsize=8.5, bbox=corner)
    axes[0].set_ylim(bottom=min(1.0, axes[0].get_ylim()[0]))
    figure.supxlabel("entropy of the model's next token at the step (nats)", fontsize=10)
    figure.supylabel("accepted tokens", fontsize=10)
    return save(
        figure,
        folder / "entropy.png",
        "Entropy against accepted tokens" + _sample_mark(summary),
        "Steps of the named arm in bins of about equal size; accepted tokens count the root. Whiskers are 95% "
        f"intervals over prompts, absent where fewer than {FEWEST_PROMPTS} prompts reach a bin. r is Pearson's.",
    )


def _relation(summary: Summary, suite: str) -> str:
    """The corner note of an entropy panel: the arm, its correlation with its interval, steps and prompts."""
    row = next(row for row in summary.entropy_correlations if (row.suite, row.signal) == (suite, "entropy"))
    found = row.correlation
    interval = "no interval" if found.low is None or found.high is None else f"[{found.low:.2f}, {found.high:.2f}]"
    return f"{row.arm}: r = {found.value:.2f} {interval}\n{row.steps} steps, {row.prompts} prompts"


def _draw_tree_choice(folder: Path, summary: Summary, steps: pa.Table) -> Plot | None:
    """Nodes of each step's tree, coloured by entropy, for the prompt of each suite on which trees change most often."""
    first = steps.filter(pc.field("repetition") == pc.min(steps["repetition"]))
    shown = _most_changing(first)
    if shown is None:
        return None
    arm, prompts = shown
    suites = [suite for suite in summary.suites if suite in prompts]
    figure, axes = panels(len(suites), height=2.3)
    of_arm = first.filter(pc.field("arm") == arm).sort_by("step")
    tables = {
        suite: of_arm.filter((pc.field("suite") == suite) & (pc.field("prompt_id") == prompts[suite]))
        for suite in suites
    }
    highest = max(float(np.nanmax(table["entropy_ema"].to_numpy(), initial=0.1)) for table in tables.values())
    for axis, (suite, table) in zip(axes, tables.items(), strict=True):
        number, nodes = table["step"].to_numpy(), table["nodes"].to_numpy()
        axis.vlines(number, 0, nodes, color="#bbbbbb", linewidth=1.2)
        points = axis.scatter(
            number,
            nodes,
            c=table["entropy_ema"].to_numpy(),
            cmap="viridis_r",
            vmin=0,
            vmax=highest,
            s=28,
            edgecolors=FAINT,
            linewidths=0.5,
            zorder=3,
        )
        axis.set_title(summary.label(suite))
    axes[0].set_ylim(bottom=-0.5)
    for counted in (axes[0].xaxis, axes[0].yaxis):
        counted.set_major_locator(MaxNLocator(integer=True))
    figure.supxlabel("step of the answer", fontsize=10)
    figure.supylabel("nodes of the step's tree", fontsize=10)
    figure.colorbar(points, ax=axes, label="entropy's moving average (nats)", aspect=30)
    return save(
        figure,
        folder / "trees.png",
        f"Trees that {arm} chose over time",
        f"On the prompt of each suite on which {arm}, which does so most of the adaptive arms, changes its tree most "
        "often. Nodes do not count the root; 0 is a plain step. Dark: the text is hard to predict there.",
    )


def _most_changing(steps: pa.Table) -> tuple[str, dict[str, str]] | None:
    """The adaptive arm whose tree changes most often, and by suite the prompt on which it changes most."""
    trees: dict[str, dict[tuple[str, str], list[str]]] = {}
    columns = steps.select(["arm", "suite", "prompt_id", "step", "tree"]).sort_by("step")
    for row in columns.to_pylist():
        trees.setdefault(row["arm"], {}).setdefault((row["suite"], row["prompt_id"]), []).append(row["tree"])
    adaptive = [arm for arm in methods.adaptive() if arm in trees]
    changes = {arm: {key: _changes(names) for key, names in trees[arm].items()} for arm in adaptive}
    if not changes:
        return None
    arm = max(changes, key=lambda arm: sum(changes[arm].values()))
    # In ascending order, so that the last prompt of each suite, the one with most changes, stays.
    return arm, dict(sorted(changes[arm], key=lambda key: (changes[arm][key], key)))


def _changes(trees: list[str]) -> int:
    return sum(a != b for a, b in pairwise(trees))


def _sample_mark(summary: Summary) -> str:
    """The end of a title where some suite's prompts are a sample; else empty."""
    samples = [suite for suite, source in summary.sources.items() if SAMPLE in source]
    return f" (sample: {', '.join(samples)})" if samples else ""
