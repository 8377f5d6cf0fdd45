"""Tables of the HTML report: cells with their intervals, and the cells that are claims."""

from collections.abc import Sequence
from dataclasses import dataclass

from entmtp.evaluation.analysis.summary import Speedup
from entmtp.intervals import Estimate, interval, ratio_interval, times

_MARKS = {"faster": "▲", "slower": "▼", "inconclusive": "~"}
"""Sign of each verdict, for readers who can't tell the colours apart."""


@dataclass(frozen=True, slots=True)
class HtmlCell:
    """A value, and a detail in small print, such as its interval. A `verdict` colours the cell and gives it a mark."""

    text: str
    detail: str = ""
    verdict: str = ""

    @property
    def mark(self) -> str:
        return _MARKS.get(self.verdict, "")


@dataclass(frozen=True, slots=True)
class HtmlTable:
    """A table of the page. Its first `names` columns name the row. `kind` is its CSS class."""

    title: str
    note: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str | HtmlCell]]
    names: int = 2
    kind: str = ""


def estimate_cell(estimate: Estimate) -> HtmlCell:
    """The cell of a measured value; without an interval where there are too few prompts."""
    return HtmlCell(f"{estimate.value:.2f}", interval(estimate) if estimate.has_interval else "no interval")


def speedup_cell(row: Speedup | None) -> HtmlCell:
    """The cell of a comparison; empty where there is none, a dash where there are too few prompts for a claim."""
    if row is None:
        return HtmlCell("")
    if not row.ratio.has_interval:
        return HtmlCell("–")
    return HtmlCell(f"{times(row.ratio.value)}×", ratio_interval(row.ratio), row.verdict)
