"""Terminal output of a load test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.table import Table

from entmtp.intervals import ratio
from entmtp.loadtest.levels import Level
from entmtp.loadtest.load_summary import LoadSummary, Slo, speedup
from entmtp.loadtest.turns import Rounds

_QUANTITIES = {"ttft": "TTFT", "tpot": "TPOT", "itl": "ITL", "e2e": "E2E"}
_COMPARED = {"e2e": "whole answers", "ttft": "first tokens"}


def terminal_table(summaries: Mapping[Level, Sequence[LoadSummary]], slo: Slo) -> Table:
    """Table with a row for each endpoint at each level."""
    table = Table(title=f"ms as p50 / p90 / p99; SLO: first token in {slo.ttft:g} s, others in {slo.tpot:g} s each")
    columns = ("load", "endpoint", "requests", "tokens/s", "tau", *_QUANTITIES.values(), "in SLO", "good/s", "errors")
    for column in columns:
        table.add_column(column)
    for level, found in summaries.items():
        for one in found:
            table.add_row(str(level), *_cells(one))
    return table


def _cells(one: LoadSummary) -> list[str]:
    times = [
        " / ".join(f"{1e3 * value:.0f}" for value in one.percentiles[name].values()) if name in one.percentiles else "–"
        for name in _QUANTITIES
    ]
    errors = ", ".join(f"{kind}: {count}" for kind, count in one.errors.items()) or "none"
    tau = "–" if one.tau is None else f"{one.tau:.2f}"
    cells = [one.endpoint, str(one.requests), f"{one.tokens_per_second:.1f}", tau, *times]
    return [*cells, f"{one.slo_share:.0%}", f"{one.goodput:.2f}", errors]


def comparison_lines(level: Level, found: Rounds, summaries: Sequence[LoadSummary]) -> list[str]:
    """Lines that compare two endpoints at one level; none for a single endpoint."""
    if len(summaries) < 2:
        return []
    (a, mine), (b, theirs) = found.items()
    ratios = {words: speedup(mine, theirs, quantity) for quantity, words in _COMPARED.items()}
    lines = [f"{level}, {a} over {b}, {words}: {ratio(one)}" for words, one in ratios.items() if one is not None]
    return [*lines, f"{level}, texts that differ: {summaries[1].differing} of {summaries[1].requests}"]
