"""The report as one self-contained HTML page: no scripts, no links to elsewhere, images inside."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from entmtp import methods
from entmtp.evaluation.analysis.conclusions import caveats, conclusions, headline, method
from entmtp.evaluation.analysis.pareto import ParetoPoint
from entmtp.evaluation.analysis.summary import DepthAcceptance, Summary
from entmtp.evaluation.report.html_matrix import NOTE, comparison_matrices
from entmtp.evaluation.report.html_suites import suite_tables
from entmtp.evaluation.report.html_table import HtmlTable
from entmtp.evaluation.report.plot_style import Plot
from entmtp.evaluation.report.quality_table import quality_table
from entmtp.evaluation.report.study_tables import study_tables
from entmtp.intervals import CONFIDENCE, FEWEST_PROMPTS, METHOD, OTHER_METHODS, interval
from entmtp.provenance import flatten_provenance

_TITLE = "EntMTP benchmark"
_PACKAGE = "entmtp.evaluation.report"


@dataclass(frozen=True, slots=True)
class HtmlSection:
    """A folded section of the page."""

    title: str
    note: str
    tables: Sequence[HtmlTable] = ()
    plots: Sequence[Plot] = ()


def render_html(
    summary: Summary,
    provenance: Mapping[str, Any],
    plots: Sequence[Plot],
    study_plots: Sequence[Plot] = (),
    pareto: Sequence[ParetoPoint] = (),
) -> str:
    """Render the page. Conclusions, `plots` and a table per suite are open, all else is folded.

    Everything that comes from rows or provenance is escaped.
    """
    environment = Environment(
        loader=PackageLoader(_PACKAGE, ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["capitalize_first"] = lambda sentence: sentence[:1].upper() + sentence[1:]
    environment.filters["image"] = lambda plot: base64.b64encode(plot.path.read_bytes()).decode()
    return environment.get_template("report.html.j2").render(
        title=_TITLE,
        run=_run(provenance),
        style=files(_PACKAGE).joinpath("report.css").read_text(encoding="utf-8"),
        headline=headline(summary),
        method=method(summary),
        conclusions=conclusions(summary),
        caveats=caveats(summary, provenance),
        arms=[one for one in methods.TABLE if any(row.arm == one.name for row in summary.arms)],
        adaptive=", ".join(methods.adaptive()),
        plots=plots,
        suites=suite_tables(summary),
        sections=_sections(summary, study_plots, pareto),
        provenance=list(flatten_provenance(provenance)),
        confidence=f"{CONFIDENCE:.0%}",
        how=METHOD,
        other=OTHER_METHODS,
        fewest=FEWEST_PROMPTS,
    )


def _run(provenance: Mapping[str, Any]) -> str:
    """The run in a line: profile, model (without its folder), hardware, day; what the provenance lacks is omitted."""
    profile, model, day = (str(provenance.get(name, "")) for name in ("profile", "model", "date"))
    parts = [profile and f"profile {profile}", Path(model).name, provenance.get("hardware"), day[:10]]
    return " · ".join(filter(None, parts))


def _sections(summary: Summary, plots: Sequence[Plot], pareto: Sequence[ParetoPoint]) -> list[HtmlSection]:
    tables = [
        quality_table(summary),
        _times(summary),
        _acceptance(summary),
        _entropy(summary),
        *study_tables(summary, pareto),
    ]
    found = [
        HtmlSection("Paired comparisons of all arms", NOTE, comparison_matrices(summary)),
        HtmlSection("More figures: " + ", ".join(plot.title for plot in plots), "", plots=plots),
        *(HtmlSection(table.title, table.note, [table]) for table in tables if table.rows),
    ]
    return [section for section in found if section.tables or section.plots]


def _times(summary: Summary) -> HtmlTable:
    return HtmlTable(
        title="Where a step's time goes",
        note="Mean milliseconds per step. Other is what the request took beyond the four parts and its prefill.",
        headings=(
            "suite",
            "arm",
            "draft",
            "verify",
            "accept",
            "policy",
            "other",
            "nodes per step",
            "different trees",
            "prefill per request",
        ),
        rows=[
            [
                summary.label(row.suite),
                row.arm,
                *(f"{part:.2f}" for part in (row.draft_ms, row.verify_ms, row.accept_ms, row.policy_ms, row.other_ms)),
                f"{row.nodes:.1f}",
                str(row.trees),
                f"{row.prefill_ms:.1f}",
            ]
            for row in summary.arms
        ],
    )


def _acceptance(summary: Summary) -> HtmlTable:
    rates = {(row.suite, row.arm, row.depth): row for row in summary.depths}
    deepest = max((row.depth for row in summary.depths), default=0)
    runs = list(dict.fromkeys((row.suite, row.arm) for row in summary.depths))
    return HtmlTable(
        title="Acceptance by depth",
        note="Share of the steps whose tree reaches a depth that accepted a token of that depth. In brackets: the same "
        "share of the steps that accepted a token of the depth before.",
        headings=("suite", "arm", *(f"depth {depth}" for depth in range(1, deepest + 1))),
        rows=[
            [
                summary.label(suite),
                arm,
                *(
                    _depth_cell(rates[suite, arm, depth]) if (suite, arm, depth) in rates else ""
                    for depth in range(1, deepest + 1)
                ),
            ]
            for suite, arm in runs
        ],
    )


def _depth_cell(row: DepthAcceptance) -> str:
    return f"{row.rate:.1%}" + ("" if row.conditional is None else f" ({row.conditional:.1%})")


def _entropy(summary: Summary) -> HtmlTable:
    rows = summary.entropy_correlations
    return HtmlTable(
        title="Entropy and accepted tokens",
        note="Pearson's correlation of a step's signal with the tokens that it gained, in the arm that the plot shows.",
        headings=("suite", "arm", "signal", "correlation", "95%", "steps", "prompts"),
        rows=[
            (
                summary.label(row.suite),
                row.arm,
                row.signal,
                f"{row.correlation.value:.2f}",
                interval(row.correlation),
                str(row.steps),
                str(row.prompts),
            )
            for row in rows
        ],
        names=3,
    )
