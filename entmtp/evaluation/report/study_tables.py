"""HTML tables of the study: tree sizes, entropy, and the best static trees by prediction."""

from collections.abc import Sequence

from entmtp.evaluation.analysis.pareto import ParetoPoint, fastest
from entmtp.evaluation.analysis.summary import Summary, TreeShare
from entmtp.evaluation.analysis.tree_sizes import COMMON, SHOWN, SIZES, size_of
from entmtp.evaluation.report.html_table import HtmlCell, HtmlTable
from entmtp.evaluation.report.study_plots import size_name
from entmtp.trees.topology import Shape


def study_tables(summary: Summary, pareto: Sequence[ParetoPoint]) -> list[HtmlTable]:
    """The tables that have rows."""
    made = [_tree_sizes(summary), _uses(summary), _entropies(summary), _fastest(summary, pareto)]
    return [table for table in made if table.rows]


def _tree_sizes(summary: Summary) -> HtmlTable:
    runs: dict[tuple[str, str], list[TreeShare]] = {}
    for row in summary.tree_shares:
        runs.setdefault((row.suite, row.arm), []).append(row)
    return HtmlTable(
        title="Sizes and shapes of the chosen trees",
        note="Share of the steps whose tree has so many nodes, without the root, and the commonest shape of that size,"
        f" if one has {COMMON:.0%} of the steps. n: nodes, d: depth, w: most nodes of one level. First repetition of"
        " each prompt.",
        headings=("suite", "arm", *(size_name(*size) for size in SIZES)),
        rows=[
            [summary.label(suite), arm, *(_of_size(rows, size) for size in SIZES)]
            for (suite, arm), rows in runs.items()
        ],
        kind="matrix",
    )


def _of_size(rows: Sequence[TreeShare], size: tuple[int, int | None]) -> HtmlCell:
    """Share of a size, and below it its most frequent shape: '41.2%' and 'n8 d4 w3'."""
    inside = [row for row in rows if size_of(row) == size]
    shapes = [str(Shape(row.nodes_from, row.depth, row.width or 0)) for row in inside if row.depth]
    return HtmlCell(f"{sum(row.share for row in inside):.1%}", *shapes[:1])


def _uses(summary: Summary) -> HtmlTable:
    uses: dict[tuple[str, str], list[HtmlCell]] = {}
    for row in summary.tree_uses:
        uses.setdefault((row.suite, row.arm), []).append(HtmlCell(f"{row.share:.1%}", row.tree))
    return HtmlTable(
        title="Trees that were chosen most",
        note="n: nodes without the root, d: depth, w: most nodes of one level; the last part distinguishes trees of "
        "one shape. Shares of the arm's steps, first repetition of each prompt.",
        headings=("suite", "arm", *(f"{rank + 1}." for rank in range(SHOWN))),
        rows=[[summary.label(suite), arm, *own, *[""] * (SHOWN - len(own))] for (suite, arm), own in uses.items()],
        kind="matrix",
    )


def _entropies(summary: Summary) -> HtmlTable:
    rows = summary.entropy_quantiles
    return HtmlTable(
        title="Distribution of entropy",
        note="Nats, over every position of the texts as plain decoding visits them.",
        headings=("suite", "positions", "mean", "10%", "25%", "median", "75%", "90%"),
        rows=[
            [
                summary.label(row.suite),
                str(row.steps),
                *(f"{value:.2f}" for value in (row.mean, row.p10, row.p25, row.p50, row.p75, row.p90)),
            ]
            for row in rows
        ],
        names=1,
    )


def _fastest(summary: Summary, pareto: Sequence[ParetoPoint]) -> HtmlTable:
    points = [point for point in fastest(pareto) if point.suite in summary.suites]
    return HtmlTable(
        title="Fastest static trees, as predicted",
        note="Of the best tree of each size, the one with the most tokens per second by this machine's step cost, and "
        "its expected tokens per step on the calibration's texts. The measured ones are medusa-best and hydra-best.",
        headings=("suite", "heads", "nodes", "tau", "ms per step", "tokens/s"),
        rows=[
            (
                summary.label(point.suite),
                point.heads,
                str(point.nodes),
                f"{point.tau:.2f}",
                f"{point.ms:.1f}",
                f"{point.tokens_per_second:.1f}",
            )
            for point in points
        ],
    )
