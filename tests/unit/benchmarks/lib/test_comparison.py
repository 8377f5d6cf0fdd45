"""Statistics of paired texts and the bars, on times made by hand."""

import itertools
import json

import pytest

from benchmarks.lib.comparison import MEAN, Bar, Comparison, TimedText, table_rows, to_table

SECONDS = {"slow": 4.0, "slower": 6.0, "fast": 2.0}


def timed(prompts: int = 3, repetitions: int = 2, fast_b: float = 1.0) -> list[TimedText]:
    """Texts of two suites; 'fast' is ``fast_b`` times as slow on the second. Prompts differ in length."""
    rows = []
    for suite, arm in itertools.product("ab", SECONDS):
        seconds = SECONDS[arm] * (fast_b if (suite, arm) == ("b", "fast") else 1)
        for prompt in [*range(prompts)] * repetitions:
            longer = prompt + 1
            rows.append(TimedText(suite, arm, prompt, 10 * longer, seconds * longer, arm != "slower", 5, 15))
    return rows


def test_speeds_and_ratios_follow_from_the_times() -> None:
    comparison = Comparison(timed(fast_b=4.0))
    assert comparison.scopes == ["a", "b", MEAN]
    assert comparison.speed("a", "fast") == pytest.approx(5)
    assert comparison.speed("b", "fast") == pytest.approx(1.25)
    assert comparison.speed(MEAN, "fast") == pytest.approx(2.5)
    over = comparison.over("fast", "slow")
    assert [over[scope].value for scope in comparison.scopes] == pytest.approx([2.0, 0.5, 1.0])
    # Every prompt has the same ratio, so resampling them in pairs changes nothing.
    assert over["a"].low == pytest.approx(2.0)
    assert over["a"].high == pytest.approx(2.0)


def test_one_slow_repetition_does_not_count() -> None:
    burst = [*timed(repetitions=3), *(TimedText("a", "fast", prompt, 10, 1e3, True) for prompt in range(3))]
    assert Comparison(burst).over("fast", "slow")["a"].value == pytest.approx(2.0)


def test_no_interval_below_three_prompts() -> None:
    assert Comparison(timed(prompts=3)).over("fast", "slow")[MEAN].has_interval
    few = Comparison(timed(prompts=2)).over("fast", "slow")
    assert not few["a"].has_interval
    assert not few[MEAN].has_interval


@pytest.mark.parametrize(
    ("fast_b", "least", "on_each", "verdict"),
    [(1.0, 1.9, False, "pass"), (1.0, 2.1, False, "FAIL"), (4.0, 0.9, False, "pass"), (4.0, 0.9, True, "FAIL")],
)
def test_bars_are_judged_on_the_mean_or_on_each(fast_b: float, least: float, on_each: bool, verdict: str) -> None:
    sentence = Bar("fast", ("slow",), "slow", least, on_each).judge(Comparison(timed(fast_b=fast_b)))
    assert sentence.startswith(f"{verdict}: fast at least {least:.2f}x as fast as slow on ")
    assert (MEAN in sentence) != on_each


def test_a_bar_stands_against_the_fastest_peer() -> None:
    comparison = Comparison(timed())
    assert "3.00x" in Bar("fast", ("slower",), "it", 2.5, False).judge(comparison)
    against_both = Bar("fast", ("slower", "slow"), "the best", 2.5, False).judge(comparison)
    assert against_both.startswith("FAIL")
    assert "2.00x" in against_both


def test_a_bar_makes_no_claim_without_intervals_and_says_when_the_interval_holds_it() -> None:
    bar = Bar("fast", ("slow",), "slow", 2.1, True)
    assert bar.judge(Comparison(timed(prompts=2))).startswith("no claim: ")
    uneven = [row for row in timed() if row.prompt or row.suite == "b"] + [
        TimedText("a", arm, 0, 10, SECONDS[arm] * (1 + (arm == "slow")), True) for arm in SECONDS
    ]
    assert "(the interval holds the bar)" in bar.judge(Comparison(uneven))


def test_rows_are_plain_numbers_and_the_table_shows_them() -> None:
    rows = table_rows(Comparison(timed()), ["fast"])
    assert json.loads(json.dumps(rows)) == rows
    by_scope = {(row["scope"], row["arm"]): row for row in rows}
    assert len(by_scope) == len(rows) == 9
    assert by_scope["a", "slow"]["fast_over"] == pytest.approx([2.0, 2.0, 2.0])
    assert by_scope["a", "fast"]["fast_over"] is None
    assert by_scope[MEAN, "slower"]["identical"] == 0
    assert by_scope[MEAN, "slower"]["prompts"] == 6
    assert by_scope["b", "fast"]["tau"] == pytest.approx((10 + 20 + 30) / 15)
    assert by_scope["b", "fast"]["nodes_per_step"] == pytest.approx(3)
    assert len(to_table(rows, ["fast"], "title").rows) == 9
