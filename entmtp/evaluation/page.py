"""The report as one self-contained HTML page: no scripts, no links to elsewhere, images inside."""

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment, StrictUndefined

from entmtp.evaluation.canvas import Plot
from entmtp.evaluation.facts import flat_facts
from entmtp.evaluation.intervals import CONFIDENCE, FEWEST_PROMPTS, METHOD
from entmtp.evaluation.page_table import PageTable
from entmtp.evaluation.page_template import TEMPLATE
from entmtp.evaluation.pareto import ParetoPoint
from entmtp.evaluation.study_tables import study_tables
from entmtp.evaluation.summary import ALL_SUITES, AUTOREGRESSIVE, ENTMTP, ArmSummary, Speedup, Summary
from entmtp.evaluation.verdicts import caveats, interval, ratio, verdicts

_TITLE = "EntMTP benchmark"


def render_page(
    summary: Summary, facts: Mapping[str, Any], plots: Sequence[Plot], pareto: Sequence[ParetoPoint] = ()
) -> str:
    """The page's HTML. Everything that comes from rows or facts is escaped."""
    template = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).from_string(TEMPLATE)
    tables = [_arms(summary), _speedups(summary), _times(summary), _acceptance(summary), _entropy(summary)]
    return template.render(
        title=_TITLE,
        verdicts=verdicts(summary),
        caveats=caveats(summary, facts),
        tables=[*tables, *study_tables(summary, pareto)],
        plots=[(plot, base64.b64encode(plot.path.read_bytes()).decode()) for plot in plots],
        facts=list(flat_facts(facts)),
        confidence=f"{CONFIDENCE:.0%}",
        method=METHOD,
        fewest=FEWEST_PROMPTS,
    )


def _arms(summary: Summary) -> PageTable:
    marks = [_mark(summary.speedup(row.suite, row.arm, AUTOREGRESSIVE)) for row in summary.arms]
    return PageTable(
        title="Suites and arms",
        note="Identical: requests that wrote exactly the tokens of autoregressive decoding. A tie: the first different "
        "token was as good as the other to the model. Score: pass@1 or exact match, the mean over scored prompts.",
        headings=(
            "suite",
            "arm",
            "prompts",
            "tokens/s",
            "tau",
            "95%",
            "× autoregressive",
            "× hydra",
            "identical",
            "ties",
            "score",
        ),
        rows=[_arm_cells(summary, row) for row in summary.arms],
        marks=marks,
        claims=(6,),
    )


def _arm_cells(summary: Summary, row: ArmSummary) -> list[str]:
    return [
        summary.label(row.suite),
        row.arm,
        str(row.prompts),
        f"{row.tokens_per_second:.1f}",
        f"{row.tau.value:.2f}",
        interval(row.tau),
        _ratio_cell(summary.speedup(row.suite, row.arm, AUTOREGRESSIVE)),
        _ratio_cell(summary.speedup(row.suite, row.arm, "hydra")),
        f"{row.identical} of {row.requests}",
        str(row.ties),
        "" if row.score is None else f"{row.score:.3f} ({row.scored})",
    ]


def _speedups(summary: Summary) -> PageTable:
    shown = {ENTMTP, summary.best_adaptive}
    rows = [row for row in summary.speedups if row.suite == ALL_SUITES or row.arm in shown]
    return PageTable(
        title="Paired comparisons",
        note="All suites together for every arm; entmtp and the best adaptive arm also suite by suite. 'level' "
        "means that the interval holds 1.",
        headings=("suite", "arm", "against", "speedup", "verdict", "prompts"),
        rows=[
            (summary.label(row.suite), row.arm, row.baseline, ratio(row.ratio), row.verdict, str(row.prompts))
            for row in rows
        ],
        marks=[_mark(row) for row in rows],
        names=3,
        claims=(3, 4),
    )


def _times(summary: Summary) -> PageTable:
    return PageTable(
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
        marks=[""] * len(summary.arms),
    )


def _acceptance(summary: Summary) -> PageTable:
    rates = {(row.suite, row.arm, row.depth): row for row in summary.depths}
    deepest = max((row.depth for row in summary.depths), default=0)
    runs = list(dict.fromkeys((row.suite, row.arm) for row in summary.depths))
    return PageTable(
        title="Acceptance by depth",
        note="Of the steps whose tree reaches a depth, the share that kept a token of that depth.",
        headings=("suite", "arm", *(f"depth {depth}" for depth in range(1, deepest + 1))),
        rows=[
            [
                summary.label(suite),
                arm,
                *(
                    f"{rates[suite, arm, depth].rate:.1%}" if (suite, arm, depth) in rates else ""
                    for depth in range(1, deepest + 1)
                ),
            ]
            for suite, arm in runs
        ],
        marks=[""] * len(runs),
    )


def _entropy(summary: Summary) -> PageTable:
    rows = summary.entropy_correlations
    return PageTable(
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
        marks=[""] * len(rows),
        names=3,
    )


def _ratio_cell(row: Speedup | None) -> str:
    if row is None:
        return ""
    return ratio(row.ratio) + (" slower" if row.verdict == "slower" else "")


def _mark(row: Speedup | None) -> str:
    return row.verdict if row is not None and row.verdict in ("faster", "slower") else ""
