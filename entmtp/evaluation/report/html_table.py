"""A table as the report's page shows it: words in cells, and which of them are claims."""

from collections.abc import Sequence
from dataclasses import dataclass

from entmtp.evaluation.analysis.summary import Speedup
from entmtp.intervals import Estimate, interval

_MARKS = {"faster": "▲", "slower": "▼", "level": "="}
"""Told by a sign too, for those who see no difference between the colours."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A number with its interval. The `verdict`, if there is one, colours the cell and gives it a mark."""

    text: str
    interval: str = ""
    verdict: str = ""

    @property
    def mark(self) -> str:
        return _MARKS.get(self.verdict, "")


@dataclass(frozen=True, slots=True)
class HtmlTable:
    """A table of the page, of which the first `names` columns are words that name the row."""

    title: str
    note: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    names: int = 2


def estimate_cell(estimate: Estimate) -> Cell:
    """A measured value; without an interval where there are too few prompts for one."""
    return Cell(f"{estimate.value:.2f}", interval(estimate) if estimate.has_interval else "no interval")


def speedup_cell(row: Speedup | None) -> Cell:
    """A comparison; empty where there is none, a dash where there are too few prompts for a claim."""
    if row is None:
        return Cell("")
    if not row.ratio.has_interval:
        return Cell("–")
    return Cell(f"{row.ratio.value:.2f}×", interval(row.ratio), row.verdict)
