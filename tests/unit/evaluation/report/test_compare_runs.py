"""Finished runs side by side: pairs, refusals, what is left out, and the gate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from entmtp.errors import EntMTPError
from entmtp.evaluation.analysis.summary import ALL_SUITES
from entmtp.evaluation.report.compare_runs import RunComparison, RunRatio, compare, regressions
from entmtp.evaluation.report.load_run import LoadedRun
from entmtp.evaluation.results.rows import RequestRow
from tests.helpers.finished_runs import ARMS, FACTS, SUITES, run_of


def taking(factor: float) -> Callable[[RequestRow], RequestRow]:
    """Requests that take `factor` times as long."""
    return lambda row: replace(row, seconds=row.seconds * factor)


def ratio_of(comparison: RunComparison, suite: str, arm: str, name: str = "b") -> RunRatio:
    (row,) = [row for row in comparison.ratios if (row.suite, row.arm, row.run) == (suite, arm, name)]
    return row


def test_runs_are_paired_by_prompt() -> None:
    comparison = compare([run_of("a"), run_of("b", taking(0.5)), run_of("c", taking(2.0))])
    for suite in (*SUITES, ALL_SUITES):
        for arm in ARMS:
            twice, half = ratio_of(comparison, suite, arm), ratio_of(comparison, suite, arm, "c")
            # Prompts differ in their time, but none in its ratio: unpaired, the interval would be wide.
            assert [twice.ratio.value, twice.ratio.low, twice.ratio.high] == pytest.approx([2, 2, 2])
            assert [half.ratio.value, half.ratio.low, half.ratio.high] == pytest.approx([0.5, 0.5, 0.5])
            assert (twice.verdict, half.verdict, twice.differing) == ("faster", "slower", 0)
            assert twice.prompts == (12 if suite == ALL_SUITES else 6)
    speeds = {row.run: row.tokens_per_second for row in comparison.arms if (row.suite, row.arm) == ("gsm8k", "hydra")}
    assert speeds["b"] == pytest.approx(2 * speeds["a"])
    assert {row.tau.value for row in comparison.arms if row.arm == "autoregressive"} == {1.0}
    assert [row.score for row in comparison.arms if row.suite == "gsm8k"] == pytest.approx([1 / 3] * 9)
    assert {row.score for row in comparison.arms if row.suite == "litbench"} == {None}


def test_a_run_against_itself_is_level() -> None:
    row = ratio_of(compare([run_of("a"), run_of("b")]), ALL_SUITES, "entmtp")
    assert (row.ratio.value, row.verdict) == (1.0, "inconclusive")


def test_suites_are_averaged_geometrically() -> None:
    factors = {"gsm8k": 0.5, "litbench": 2.0}
    comparison = compare([run_of("a"), run_of("b", lambda row: taking(factors[row.suite])(row))])
    assert ratio_of(comparison, "gsm8k", "hydra").ratio.value == pytest.approx(2)
    assert ratio_of(comparison, ALL_SUITES, "hydra").ratio.value == pytest.approx(1)


def test_time_is_reported_for_the_same_work() -> None:
    """A run that writes half the text in half the time is not faster."""
    half = lambda row: replace(row, new_tokens=row.new_tokens // 2, seconds=row.seconds / 2)  # noqa: E731
    row = ratio_of(compare([run_of("a"), run_of("b", half)]), "gsm8k", "hydra")
    assert row.ratio.value == pytest.approx(1)


def test_texts_that_differ_are_counted_by_prompt() -> None:
    def other(row: RequestRow) -> RequestRow:
        touched = row.prompt_id in ("gsm8k-1", "gsm8k-4") and row.arm == "hydra" and row.repetition == 2
        return replace(row, token_ids=[*row.token_ids[:-1], 999]) if touched else row

    comparison = compare([run_of("a"), run_of("b", other)])
    assert ratio_of(comparison, "gsm8k", "hydra").differing == 2
    assert ratio_of(comparison, ALL_SUITES, "hydra").differing == 2
    assert ratio_of(comparison, "gsm8k", "entmtp").differing == 0


def test_what_not_all_have_is_noted_and_left_out() -> None:
    absent = {("gsm8k-0", "entmtp"), ("gsm8k-0", "hydra"), ("gsm8k-0", "autoregressive")}

    def less(row: RequestRow) -> RequestRow | None:
        gone = (row.prompt_id, row.arm) in absent or (row.suite, row.arm) == ("litbench", "hydra")
        return None if gone else row

    def slow_where_alone(row: RequestRow) -> RequestRow:
        return taking(100 if row.prompt_id == "gsm8k-0" else 1)(row)

    comparison = compare([run_of("a", slow_where_alone), run_of("b", less), run_of("c")])
    assert ratio_of(comparison, "gsm8k", "hydra").prompts == ratio_of(comparison, "gsm8k", "hydra", "c").prompts == 5
    assert ratio_of(comparison, "gsm8k", "hydra", "c").ratio.value == 1
    assert not [row for row in comparison.ratios if (row.suite, row.arm, row.run) == ("litbench", "hydra", "b")]
    assert ratio_of(comparison, "litbench", "hydra", "c").prompts == 6
    notes = " ".join(comparison.notes)
    assert "a has it and b has not: hydra on litbench." in notes
    assert "gsm8k: prompts that not all runs have are left out, 1 of a and 1 of c; 5 are compared." in notes
    assert "litbench: prompts that not all" not in notes


def test_differences_and_notes_are_reported() -> None:
    one = FACTS | {"settings.repetitions": "1", "prompts.gsm8k": "abc", "prompts.litbench": "x", "model": "m"}
    other = FACTS | {"hardware": "two", "prompts.gsm8k": "def", "prompts.litbench": "x", "model": "m"}
    comparison = compare([run_of("a", provenance=one), run_of("b", provenance=other)])
    expected = {"settings.repetitions": ["1", "3"], "hardware": ["one", "two"], "prompts.gsm8k": ["abc", "def"]}
    assert comparison.differences == expected
    notes = " ".join(comparison.notes)
    assert "not paired in time" in notes
    assert "single repetition" in notes
    assert "litbench: prompts are this project's own small sample" in notes
    assert "gsm8k: not all runs have the same prompts" in notes
    calm = " ".join(compare([run_of("a"), run_of("b")]).notes)
    assert "single repetition" not in calm
    assert "same prompts" not in calm


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (run_of("b", provenance=FACTS | {"settings.max_new_tokens": "32"}), r"max_new_tokens.*a 64, b 32"),
        (run_of("b", provenance={}), r"max_new_tokens.*b unknown"),
        (
            run_of("b", lambda row: replace(row, source="file")),
            r"gsm8k|litbench.*source is .* in a and file in b",
        ),
        (run_of("b", lambda row: replace(row, prompt_tokens=41)), r"number of tokens is 40 in a and 41 in b"),
        (run_of("b", lambda row: replace(row, suite="humaneval")), "no suite, arm and prompt in common"),
        (
            run_of("b", lambda row: replace(row, prompt_id=f"x{row.prompt_id}")),
            "no suite, arm and prompt in common",
        ),
        (run_of("a"), r"two are called 'a'; .*NAME=RUN"),
        (None, "1 given; a comparison needs two"),
    ],
)
def test_runs_of_other_work_are_refused(other: LoadedRun | None, reason: str) -> None:
    with pytest.raises(EntMTPError, match=reason) as caught:
        compare([run_of("a"), *([other] if other else [])])
    assert "\n" not in str(caught.value)


def test_the_gate_names_every_regression() -> None:
    slower = compare([run_of("a"), run_of("b", lambda row: taking(1.1 if row.arm == "hydra" else 1.0)(row))])
    lines = regressions(slower, 0.97)
    assert [line.split(":")[0] for line in lines] == [f"hydra on {suite}" for suite in (*SUITES, ALL_SUITES)]
    assert all("b is 0.909x [0.909, 0.909] as fast as a, wholly below 0.97" in line for line in lines)
    assert regressions(slower, 0.9) == []


def test_the_gate_forgives_what_is_not_sure() -> None:
    def noisy(row: RequestRow) -> RequestRow:
        return taking(1.6 if row.prompt_id.endswith(("0", "1", "2")) else 0.8)(row)

    comparison = compare([run_of("a"), run_of("b", noisy)])
    row = ratio_of(comparison, "gsm8k", "hydra")
    assert row.ratio.low is not None
    assert row.ratio.high is not None
    assert row.ratio.low < row.ratio.value < 0.97 < row.ratio.high
    assert regressions(comparison, 0.97) == []


@pytest.mark.parametrize("bound", [0.0, -1.0, float("nan"), float("inf")])
def test_a_bound_must_be_a_ratio(bound: float) -> None:
    with pytest.raises(EntMTPError, match="fail-below"):
        regressions(compare([run_of("a"), run_of("b")]), bound)


def test_without_intervals_the_gate_does_not_pass() -> None:
    def two(row: RequestRow) -> RequestRow | None:
        return row if row.prompt_id.endswith(("0", "1")) else None

    comparison = compare([run_of("a", two), run_of("b", two)])
    assert {row.verdict for row in comparison.ratios} == {"no claim"}
    with pytest.raises(EntMTPError, match="nothing can be judged without intervals"):
        regressions(comparison, 0.97)
