"""Output of a comparison of runs: on the terminal, and as a folder with a Markdown page and tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from entmtp.evaluation.analysis.summary import ALL_SUITES
from entmtp.evaluation.report.compare_runs import RunArm, RunComparison, RunRatio
from entmtp.evaluation.results.flat_tables import flat_table, markdown_table, write_table
from entmtp.files import write_text
from entmtp.intervals import ratio

PAGE = "comparison.md"
_COLOURS = {"faster": "green", "slower": "red"}
_RATIO = 5  # column


def print_comparison(console: Console, comparison: RunComparison) -> None:
    """Print a row per suite, arm and run, then the differences between the runs, then the notes."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for column, heading in enumerate(_headings(comparison)):
        table.add_column(heading, justify="left" if column < 3 else "right", overflow="fold")
    above: Sequence[str] = ("", "")
    for cells, verdict in _rows(comparison):
        shown = [Text(cell) for cell in cells]
        shown[_RATIO].stylize(_COLOURS.get(verdict, ""))
        for column in range(2):
            if cells[: column + 1] == above[: column + 1]:
                shown[column] = Text("")
        above = cells
        table.add_row(*shown)
    console.print(table)
    differences = Table("what differs", *comparison.runs, box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for name, values in comparison.differences.items():
        differences.add_row(name, *(Text(value, overflow="ellipsis", no_wrap=True) for value in values))
    console.print(differences)
    for note in comparison.notes:
        console.print(Text(f"! {note}", style="yellow"), soft_wrap=not console.is_terminal)


def write_comparison(folder: Path, comparison: RunComparison) -> Path:
    """Write the comparison into `folder` and return its page. Each table goes to `tables/`, as CSV and Parquet."""
    tables = {
        "arms": [asdict(row) for row in comparison.arms],
        "ratios": [asdict(row) | {"verdict": row.verdict} for row in comparison.ratios],
        "differences": [
            {"fact": name, "run": run, "value": value}
            for name, values in comparison.differences.items()
            for run, value in zip(comparison.runs, values, strict=True)
        ],
    }
    for name, rows in tables.items():
        write_table(folder / "tables" / name, flat_table(rows))
    return write_text(folder / PAGE, "\n".join(_page(comparison)) + "\n")


def _page(comparison: RunComparison) -> list[str]:
    first, *others = comparison.runs
    differences = [[name, *values] for name, values in comparison.differences.items()]
    return [
        f"# {', '.join(others)} against {first}",
        "",
        *markdown_table(_headings(comparison), [cells for cells, _ in _rows(comparison)]),
        "",
        *(f"- {note}" for note in comparison.notes),
        "",
        "## What differs",
        "",
        *markdown_table(["fact", *comparison.runs], differences),
    ]


def _headings(comparison: RunComparison) -> list[str]:
    first = comparison.runs[0]
    return ["suite", "arm", "run", "tokens/s", "tau", f"times as fast as {first}", "other texts", "score"]


def _rows(comparison: RunComparison) -> list[tuple[list[str], str]]:
    """Cells and verdict of each suite, arm and run, then of all suites together."""
    ratios = {(row.suite, row.arm, row.run): row for row in comparison.ratios}
    rows = [_cells(row, ratios.get((row.suite, row.arm, row.run))) for row in comparison.arms]
    return rows + [
        ([row.suite, row.arm, row.run, "", "", *_compared(row), ""], row.verdict)
        for row in comparison.ratios
        if row.suite == ALL_SUITES
    ]


def _cells(row: RunArm, against: RunRatio | None) -> tuple[list[str], str]:
    measured = [f"{row.tokens_per_second:.1f}", f"{row.tau.value:.2f}"]
    compared = ["", ""] if against is None else _compared(against)
    score = "" if row.score is None else f"{row.score:.2f}"
    return [row.suite, row.arm, row.run, *measured, *compared, score], "" if against is None else against.verdict


def _compared(row: RunRatio) -> list[str]:
    return [ratio(row.ratio, unit=""), f"{row.differing}/{row.prompts}" if row.differing else "none"]
