"""A table as the report's page shows it: words in cells, and which of them are claims."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PageTable:
    """A table of the page.

    The first `names` columns are words, the others numbers. `marks` has a CSS class per row, which colours the columns
    whose indexes are in `claims`.
    """

    title: str
    note: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    marks: Sequence[str]
    names: int = 2
    claims: Sequence[int] = ()
