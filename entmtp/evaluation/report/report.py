"""The benchmark's report: a table for the terminal, and a folder with one HTML page, figures and tables."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from entmtp.evaluation.analysis.conclusions import caveats, conclusions
from entmtp.evaluation.analysis.pareto import ParetoPoint, pareto_table
from entmtp.evaluation.analysis.summarise import summarise
from entmtp.evaluation.analysis.summary import ArmSummary, Speedup, Summary, tables
from entmtp.evaluation.report.html import render_html
from entmtp.evaluation.report.plot_style import Plot
from entmtp.evaluation.report.plots import draw_plots
from entmtp.evaluation.report.study_plots import draw_study_plots
from entmtp.evaluation.results.flat_tables import write_table
from entmtp.files import write_text, write_whole
from entmtp.intervals import ratio
from entmtp.methods import AUTOREGRESSIVE

WIDE = 120  # characters that the whole table takes
_WIDE_HEADINGS = ("ms per step: draft\nverify accept policy", "score (of\nprompts)", "log P of\na token")
SUMMARY, REQUESTS = "summary.json", "requests.parquet"
_COLOURS = {"faster": "green", "slower": "red"}


def print_table(console: Console, summary: Summary, provenance: Mapping[str, Any]) -> None:
    """Print a row per suite and arm, then the conclusions and caveats.

    A console narrower than `WIDE` characters gets the table without times and scores, which then fits 80.
    """
    console.print(_table(summary, wide=console.width >= WIDE))
    for sentence in conclusions(summary):
        console.print(Text(f"- {sentence}"), soft_wrap=not console.is_terminal)
    for sentence in caveats(summary, provenance):
        console.print(Text(f"! {sentence}", style="yellow"), soft_wrap=not console.is_terminal)


def write_report(
    folder: Path,
    requests: pa.Table,
    steps: pa.Table,
    provenance: Mapping[str, Any],
    pareto: Sequence[ParetoPoint] = (),
) -> Path:
    """Write the report of benchmark rows into `folder` and return its page, `index.html`.

    The folder also has `summary.json`, the figures as PNG, and each table as CSV and as Parquet under `tables/`. All
    request rows (`REQUESTS`) are in it too, so that another run can be compared with this one prompt by prompt.

    Args:
        requests, steps: rows, as `rows.read_parts` gives them.
        provenance: of the numbers (model, heads, hardware, versions, command, ...); values may be nested.
        pareto: the trees that static arms were chosen from, drawn together with the measured arms.
    """
    summary = summarise(requests, steps)
    found = tables(summary) | ({"pareto": pareto_table(pareto)} if pareto else {})
    for name, table in found.items():
        write_table(folder / "tables" / name, table)
    write_whole(folder / REQUESTS, lambda unfinished: pq.write_table(requests, unfinished))
    plots, study_plots = draw_plots(folder, summary, steps), draw_study_plots(folder, summary, steps, pareto)
    write_text(folder / SUMMARY, _as_json(summary, found, provenance, plots + study_plots))
    return write_text(folder / "index.html", render_html(summary, provenance, plots, study_plots, pareto))


def _table(summary: Summary, *, wide: bool) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=0, pad_edge=False)
    table.add_column("suite, arm", no_wrap=True)
    for heading in ("tokens\nper s", "tau", "times as fast as\nautoregressive"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("", min_width=len("slower"), no_wrap=True)
    for heading in ("times as fast as\nhydra", "same\ntext", *(_WIDE_HEADINGS if wide else ())):
        table.add_column(heading, justify="right", no_wrap=True)
    for suite in summary.suites:
        table.add_row(Text(summary.label(suite), style="bold"))
        for row in summary.arms:
            if row.suite == suite:
                table.add_row(*_cells(summary, row), *(_wide_cells(row) if wide else ()))
    return table


def _cells(summary: Summary, row: ArmSummary) -> list[Text]:
    against_plain = summary.speedup(row.suite, row.arm, AUTOREGRESSIVE)
    against_hydra = summary.speedup(row.suite, row.arm, "hydra")
    verdict = "" if against_plain is None else against_plain.verdict
    return [
        Text(f"  {row.arm}"),
        Text(f"{row.tokens_per_second:.1f}"),
        Text(f"{row.tau.value:.2f}"),
        _comparison(against_plain),
        Text(verdict if verdict in _COLOURS else "", style=_COLOURS.get(verdict, "")),  # logs have no colours
        _comparison(against_hydra),
        Text("all") if row.identical == row.requests else Text(f"{row.identical}/{row.requests}", style="red"),
    ]


def _wide_cells(row: ArmSummary) -> list[Text]:
    parts = (row.draft_ms, row.verify_ms, row.accept_ms, row.policy_ms)
    return [
        Text(" ".join(f"{part:.1f}" for part in parts)),
        Text("" if row.score is None else f"{row.score:.2f} ({row.scored})"),
        Text(f"{row.log_likelihood.value:.2f}"),
    ]


def _comparison(row: Speedup | None) -> Text:
    return Text("") if row is None else Text(ratio(row.ratio, unit=""), style=_COLOURS.get(row.verdict, ""))


def _as_json(
    summary: Summary, found: Mapping[str, pa.Table], provenance: Mapping[str, Any], plots: Sequence[Plot]
) -> str:
    content = {
        "facts": dict(provenance),
        "verdicts": conclusions(summary),
        "caveats": caveats(summary, provenance),
        "figures": [{"file": plot.path.name, "title": plot.title, "caption": plot.caption} for plot in plots],
        "tables": {name: table.to_pylist() for name, table in found.items()},
    }
    return json.dumps(_finite(content), indent=1, ensure_ascii=False, default=str)


def _finite(value: Any) -> Any:
    """The value with null instead of nan and infinity, which JSON lacks."""
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
