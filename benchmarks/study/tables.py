"""Markdown tables of a benchmark's report for the study's page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmarks.lib.markdown import table_lines
from entmtp.evaluation.analysis.summary import ArmSummary, Summary
from entmtp.evaluation.report.quality_table import quality_table
from entmtp.intervals import CONFIDENCE, FEWEST_PROMPTS, METHOD, OTHER_METHODS, interval, ratio

SPEED_NOTE = (
    "tau counts the root. A speedup is the column's wall-clock time over the row's for the same prompts, with its"
    f" {CONFIDENCE:.0%} interval over prompts; an empty cell was not compared, a dash has fewer than"
    f" {FEWEST_PROMPTS} prompts. Each interval holds for its own comparison: of twenty, one may miss. Method: {METHOD};"
    f" {OTHER_METHODS}."
)


def speed_lines(summary: Summary, baselines: Sequence[str]) -> Iterator[str]:
    """Table of each arm's speed on each suite, and its speedup over each of the ``baselines``, line by line."""
    columns = ["suite", "arm", "prompts", "tokens/s", "tau", *(f"over {baseline}" for baseline in baselines)]
    yield from table_lines(columns, (_speed_cells(summary, row, baselines) for row in summary.arms))


def quality_lines(summary: Summary) -> Iterator[str]:
    """Table of the scores and likelihoods of each arm's texts on each suite, after its note, line by line."""
    table = quality_table(summary)
    yield from (table.note, "")
    yield from table_lines(table.headings, table.rows)


def _speed_cells(summary: Summary, row: ArmSummary, baselines: Sequence[str]) -> list[str]:
    against = [summary.speedup(row.suite, row.arm, baseline) for baseline in baselines]
    return [
        summary.label(row.suite),
        row.arm,
        str(row.prompts),
        f"{row.tokens_per_second:.1f}",
        f"{row.tau.value:.2f} {interval(row.tau)}",
        *("" if found is None else ratio(found.ratio) for found in against),
    ]
