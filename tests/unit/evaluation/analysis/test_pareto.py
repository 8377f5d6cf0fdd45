"""Frontiers as points, and the report's figures and tables that they make."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from entmtp.evaluation.analysis.pareto import ParetoPoint, fastest, pareto
from entmtp.evaluation.report.report import write_report
from entmtp.evaluation.results.rows import REQUEST_SCHEMA, STEP_SCHEMA, as_table
from tests.helpers.blank_figures import blank_figures
from tests.helpers.small_cases import small_bank
from tests.helpers.synthetic_rows import COST, make_rows


@pytest.fixture(scope="module")
def points() -> list[ParetoPoint]:
    kinds = {kind: small_bank(heads_kind=kind) for kind in ("medusa", "hydra")}
    return pareto({"gsm8k": kinds, "litbench": kinds}, {"medusa": COST, "hydra": COST})


def test_a_point_for_every_tree_of_the_frontier(points: list[ParetoPoint]) -> None:
    frontier = small_bank().overall
    line = [point for point in points if (point.suite, point.heads) == ("gsm8k", "hydra")]
    assert [point.nodes for point in line] == list(range(len(frontier.paths) + 1))
    assert [point.tau for point in line] == frontier.gain
    assert [point.ms for point in line] == [COST(tree) for tree in frontier.trees]
    assert line[0].tokens_per_second == pytest.approx(1000 / 30.0)
    assert len(points) == 4 * len(line)


def test_heads_without_a_cost_are_left_out() -> None:
    banks = {"gsm8k": {kind: small_bank(heads_kind=kind) for kind in ("medusa", "hydra")}}
    assert {point.heads for point in pareto(banks, {"hydra": COST})} == {"hydra"}
    assert pareto(banks, {}) == []


def test_the_fastest_of_each_line(points: list[ParetoPoint]) -> None:
    best = fastest(points)
    assert [(point.suite, point.heads) for point in best] == [
        (suite, kind) for suite in ("gsm8k", "litbench") for kind in ("medusa", "hydra")
    ]
    assert best[0].tokens_per_second == max(point.tokens_per_second for point in points)


def test_the_report_draws_them_with_the_measured_arms(points: list[ParetoPoint], tmp_path: Path) -> None:
    requests, steps = make_rows(suites=("gsm8k", "litbench"), prompts=3, repetitions=1)
    tables = as_table(requests, REQUEST_SCHEMA), as_table(steps, STEP_SCHEMA)
    with blank_figures():
        page = write_report(tmp_path, *tables, {}, points).read_text(encoding="utf-8")
    assert "Fastest static trees, as predicted" in page
    assert pq.read_table(tmp_path / "tables" / "pareto.parquet").num_rows == len(points)
    content = json.loads((tmp_path / "summary.json").read_text())
    files = [figure["file"] for figure in content["figures"]]
    assert files[-2:] == ["pareto-tau.png", "pareto-speed.png"]
    assert {path.name for path in tmp_path.glob("*.png")} == set(files)
    assert len(content["tables"]["pareto"]) == len(points)


def test_points_of_suites_that_did_not_run_are_not_drawn(points: list[ParetoPoint], tmp_path: Path) -> None:
    requests, steps = make_rows(arms=("hydra",), suites=("humaneval",), prompts=3, repetitions=1)
    with blank_figures():
        write_report(tmp_path, as_table(requests, REQUEST_SCHEMA), as_table(steps, STEP_SCHEMA), {}, points)
    assert not list(tmp_path.glob("pareto*.png"))
