"""HTML matrices of paired comparisons: arms against baselines, for all suites together and for each suite."""

from entmtp import methods
from entmtp.evaluation.analysis.summary import ALL_SUITES, BASELINES, Summary
from entmtp.evaluation.report.html_table import HtmlCell, HtmlTable, speedup_cell
from entmtp.methods import order

NOTE = (
    "How many times as fast the row's arm is as the column's, on the same prompts. ▲ faster, ▼ slower, ~ inconclusive"
    " (the interval holds 1), – no claim (too few prompts). Each interval holds for its own comparison: of twenty, one"
    " may miss."
)


def comparison_matrices(summary: Summary) -> list[HtmlTable]:
    """Matrices of all suites together, then of each suite; none where only one arm ran."""
    suites = [*([ALL_SUITES] if len(summary.suites) > 1 else []), *summary.suites]
    return [table for suite in suites if (table := _matrix(summary, suite)).rows]


def _matrix(summary: Summary, suite: str) -> HtmlTable:
    compared = [row for row in summary.speedups if row.suite == suite]
    arms = sorted({arm for row in compared for arm in (row.arm, row.baseline)}, key=order)
    # The arms that are compared with every other: further columns would be empty but for adaptive arms.
    baselines = [arm for arm in arms if arm in (*BASELINES, *methods.adaptive())]
    return HtmlTable(
        title=summary.label(suite),
        note="",
        headings=("arm", *baselines),
        rows=[[arm, *(_cell(summary, suite, arm, baseline) for baseline in baselines)] for arm in arms],
        names=1,
        kind="matrix",
    )


def _cell(summary: Summary, suite: str, arm: str, baseline: str) -> HtmlCell:
    if (row := summary.speedup(suite, arm, baseline)) is not None:
        return speedup_cell(row)
    row = summary.speedup(suite, baseline, arm)
    return speedup_cell(None if row is None else row.reversed)
