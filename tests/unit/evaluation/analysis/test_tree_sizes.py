from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from entmtp.evaluation.analysis.summarise import summarise
from entmtp.evaluation.analysis.summary import Summary, tables
from entmtp.evaluation.analysis.tree_sizes import COMMON, SIZES, size_of
from entmtp.evaluation.report.html_table import HtmlCell
from entmtp.evaluation.report.study_tables import study_tables
from entmtp.evaluation.results.rows import REQUEST_SCHEMA, STEP_SCHEMA, RequestRow, StepRow, as_table
from tests.helpers.synthetic_rows import make_rows


def summary_of(requests: list[RequestRow], steps: list[StepRow]) -> Summary:
    return summarise(as_table(requests, REQUEST_SCHEMA), as_table(steps, STEP_SCHEMA))


def test_sizes_follow_each_other_without_gaps() -> None:
    assert [low for low, _ in SIZES[1:]] == [(high or 0) + 1 for _, high in SIZES[:-1]]


def named(nodes: int, depth: int, width: int) -> str:
    return f"n{nodes}-d{depth}-w{width}-00000000" if nodes else "n0"


def test_shares_count_each_step_of_the_first_repetition_once() -> None:
    requests, steps = make_rows(arms=("hydra", "entmtp"), suites=("gsm8k",), prompts=1, repetitions=2, new_tokens=64)
    first = [step for step in steps if step.arm == "entmtp" and step.repetition == 0]
    chosen = dict(enumerate([0, 1, 2, 3, 4, 5, 16, 32, 33, 200]))
    steps = [
        replace(step, tree=named(chosen.get(step.step, 8) if step.repetition == 0 else 1, 1, 1))
        for step in steps
        if step.arm == "entmtp"
    ]
    counts: Counter[tuple[int, int | None]] = Counter()
    for row in summary_of(requests, steps).tree_shares:
        counts[size_of(row)] += round(row.share * len(first))
    assert sum(counts.values()) == len(first)
    others = len(first) - len(chosen)
    assert [counts[size] for size in SIZES] == [1, 1, 1, 2, 1 + others, 1, 1, 2]


def test_common_shapes_have_rows_and_rare_ones_of_a_size_share_one() -> None:
    requests, steps = make_rows(arms=("entmtp",), suites=("gsm8k",), prompts=40, repetitions=1)
    rare = [named(7, 3, 3), named(6, 2, 4), named(8, 2, 5)]
    trees = [*rare, *[named(8, 4, 2)] * (len(steps) // 2)]
    trees += [named(8, 2, 4)] * (len(steps) - len(trees) - 4) + [named(0, 0, 0)] * 4
    assert 1 / len(steps) < 4 / len(steps) < COMMON
    steps = [replace(step, tree=tree) for step, tree in zip(steps, trees, strict=True)]
    rows = summary_of(requests, steps).tree_shares
    shapes = [(row.nodes_from, row.nodes_to, row.depth, row.width) for row in rows]
    assert shapes == [(0, 0, None, None), (8, 8, 4, 2), (8, 8, 2, 4), (5, 8, None, None)]
    assert rows[1].share == pytest.approx(len(steps) // 2 / len(steps))
    assert rows[3].share == pytest.approx(len(rare) / len(steps))


def test_the_page_tells_the_commonest_shape_of_each_size() -> None:
    requests, steps = make_rows(arms=("entmtp",), suites=("gsm8k",), prompts=1, repetitions=1)
    steps = [replace(step, tree=named(8, 4, 2) if step.step % 3 else named(6, 3, 3)) for step in steps]
    (table,) = (
        one for one in study_tables(summary_of(requests, steps), []) if one.title.startswith("Sizes and shapes")
    )
    (row,) = table.rows
    assert row[list(table.headings).index("5-8")] == HtmlCell("100.0%", "n8 d4 w2")
    assert row[list(table.headings).index("33+")] == HtmlCell("0.0%")


def test_trees_of_one_size_are_counted_apart() -> None:
    requests, steps = make_rows(arms=("entmtp",), suites=("gsm8k",), prompts=1, repetitions=2)
    names = {0: "n8-d4-w3-aaaaaaaa", 1: "n8-d4-w3-bbbbbbbb"}
    first = [step for step in steps if step.repetition == 0]
    steps = [replace(step, nodes=8, tree=names[int(step.step < 3)]) for step in steps]
    summary = summary_of(requests, steps)
    found = {row.tree: row.share for row in summary.tree_uses}
    assert found == pytest.approx({names[0]: 1 - 3 / len(first), names[1]: 3 / len(first)})
    assert [row.trees for row in summary.arms] == [2]


def test_shares_are_of_adaptive_arms_and_yardsticks() -> None:
    shares = summary_of(*make_rows(suites=("gsm8k",), prompts=1, repetitions=1)).tree_shares
    adaptive = ["entmtp", "entmtp-goodput", "entmtp-dynamic", "entmtp-transfer", "entmtp-mixed"]
    assert list(dict.fromkeys(row.arm for row in shares)) == [*adaptive, "bank-oracle", "hindsight"]


def test_entropy_is_described_at_every_position_of_plain_decoding() -> None:
    requests, steps = make_rows(
        arms=("autoregressive", "hydra"), suites=("gsm8k", "litbench"), prompts=2, new_tokens=50
    )
    found = summary_of(requests, steps).entropy_quantiles
    assert [(row.suite, row.steps) for row in found] == [("gsm8k", 100), ("litbench", 100)]
    values = [
        step.entropy for step in steps if (step.suite, step.arm, step.repetition) == ("gsm8k", "autoregressive", 0)
    ]
    assert found[0].mean == pytest.approx(np.mean(values))
    quantiles = [found[0].p10, found[0].p25, found[0].p50, found[0].p75, found[0].p90]
    assert quantiles == pytest.approx(np.quantile(values, [0.1, 0.25, 0.5, 0.75, 0.9]).tolist())


def test_they_are_tables_too() -> None:
    found = tables(summary_of(*make_rows(suites=("gsm8k",), prompts=3, repetitions=1)))
    assert found["tree_shares"].column_names == ["suite", "arm", "nodes_from", "nodes_to", "depth", "width", "share"]
    assert found["entropy_quantiles"].num_rows == 1


def test_without_adaptive_arms_and_plain_decoding_both_are_empty() -> None:
    summary = summary_of(*make_rows(arms=("hydra",), suites=("gsm8k",), prompts=3, repetitions=1))
    assert (summary.tree_shares, summary.entropy_quantiles) == ([], [])
