"""HTML tables of the suites: the results of each arm on one suite."""

from entmtp.evaluation.analysis.score import metric
from entmtp.evaluation.analysis.summary import ArmSummary, Summary
from entmtp.evaluation.report.html_table import HtmlCell, HtmlTable, estimate_cell, speedup_cell
from entmtp.methods import AUTOREGRESSIVE

_HYDRA = "hydra"


def suite_tables(summary: Summary) -> list[HtmlTable]:
    """Tables, one per suite, with the arms as rows."""
    return [_suite(summary, suite) for suite in summary.suites]


def _suite(summary: Summary, suite: str) -> HtmlTable:
    rows = [row for row in summary.arms if row.suite == suite]
    scored = any(row.score is not None for row in rows)
    prompts = max(row.prompts for row in rows)
    repetitions = max(row.requests // row.prompts for row in rows)
    return HtmlTable(
        title=summary.label(suite),
        note=f"{prompts} prompts, {repetitions} repetition{'s' * (repetitions > 1)} of each arm on each.",
        headings=(
            *("arm", "tokens/s", "tau", f"× {AUTOREGRESSIVE}", f"× {_HYDRA}", "identical"),
            *([metric(suite) or "score"] if scored else []),
            "log-likelihood",
        ),
        rows=[
            [*_cells(summary, row), *([_score(row)] if scored else []), estimate_cell(row.log_likelihood)]
            for row in rows
        ],
        names=1,
    )


def _cells(summary: Summary, row: ArmSummary) -> list[str | HtmlCell]:
    return [
        row.arm,
        f"{row.tokens_per_second:.1f}",
        estimate_cell(row.tau),
        speedup_cell(summary.speedup(row.suite, row.arm, AUTOREGRESSIVE)),
        speedup_cell(summary.speedup(row.suite, row.arm, _HYDRA)),
        _identical(row),
    ]


def _identical(row: ArmSummary) -> str:
    found = "all" if row.identical == row.requests else f"{row.identical} of {row.requests}"
    return found + (f", {row.ties} tie{'s' * (row.ties > 1)}" if row.ties else "")


def _score(row: ArmSummary) -> str:
    return "" if row.score is None else f"{row.score:.3f} ({row.scored})"
