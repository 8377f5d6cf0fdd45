"""Intervals cover as often as they say at the numbers of prompts that benchmarks have."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import scipy

from entmtp.intervals import (
    Estimate,
    Floats,
    LogMean,
    correlation,
    mean_of_logs,
    mean_of_suites,
    paired_ratio,
    percent,
    proportion,
    ratio,
    ratio_of_sums,
    times,
)

COUNTS = (3, 30, *(pytest.param(count, marks=pytest.mark.slow) for count in (4, 6, 10, 14)))
TRIALS = 4000
SPREAD = 0.1

Drawn = Callable[[np.random.Generator, int], Floats]

# Logarithms of a prompt's ratio around 0. Those of real runs are skewed to either side, by less than a gamma's 1.
RATIOS: dict[str, Drawn] = {
    "even": lambda rng, count: rng.normal(0, SPREAD, count),
    "skewed up": lambda rng, count: SPREAD / 2 * (rng.gamma(4, 1, count) - 4),
    "skewed down": lambda rng, count: SPREAD / 2 * (4 - rng.gamma(4, 1, count)),
    "with outliers": lambda rng, count: SPREAD * rng.standard_t(5, count),
}


def covered(found: Estimate, value: float) -> bool:
    assert found.low is not None
    assert found.high is not None
    return found.low <= value <= found.high


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("kind", RATIOS)
def test_paired_ratios_cover(kind: str, count: int) -> None:
    rng = np.random.default_rng(count)
    hits = 0
    for _ in range(TRIALS):
        work = rng.gamma(20, 1, count)
        hits += covered(paired_ratio(1.5 * work * np.exp(RATIOS[kind](rng, count)), work).estimate(), 1.5)
    assert 0.93 - 0.008 <= hits / TRIALS <= 0.97 + 0.008  # two standard errors of the share itself


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("kind", RATIOS)
def test_suites_together_cover_whatever_their_spreads(kind: str, count: int) -> None:
    rng = np.random.default_rng(count)
    hits = 0
    for _ in range(TRIALS):
        suites = [np.exp(spread * RATIOS[kind](rng, count)) for spread in (1, 1, 2, 0.5)]
        hits += covered(mean_of_suites([paired_ratio(each, np.ones(count)) for each in suites]).estimate(), 1.0)
    assert 0.93 - 0.008 <= hits / TRIALS <= 0.97 + 0.008


@pytest.mark.parametrize("count", COUNTS)
def test_tokens_per_step_cover(count: int) -> None:
    """Sums in which long texts count more, of prompts whose own means differ as those of real suites do."""
    rng = np.random.default_rng(count)
    hits = 0
    for _ in range(TRIALS):
        steps = rng.gamma(10, 3, count)
        hits += covered(ratio_of_sums(2 * steps * rng.gamma(50, 1 / 50, count), steps), 2.0)
    assert 0.93 - 0.008 <= hits / TRIALS <= 0.97 + 0.008


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("kind", RATIOS)
def test_means_of_logs_cover(kind: str, count: int) -> None:
    rng = np.random.default_rng(count)
    hits = sum(covered(mean_of_logs(RATIOS[kind](rng, count) - 0.7).log_estimate(), -0.7) for _ in range(TRIALS))
    assert 0.93 - 0.008 <= hits / TRIALS <= 0.97 + 0.008


@pytest.mark.parametrize("count", COUNTS)
def test_correlations_cover(count: int) -> None:
    rng = np.random.default_rng(count)
    hits, trials = 0, TRIALS // 4
    for _ in range(trials):
        x = [rng.normal(3.0, size=20) for _ in range(count)]  # no mean is 0, which correlation subtracts
        hits += covered(correlation(x, [0.5 * part + rng.normal(size=20) for part in x]), 0.5 / np.sqrt(1.25))
    assert 0.93 - 0.014 <= hits / trials <= 0.97 + 0.014


def test_a_ratio_is_the_geometric_mean_with_students_interval() -> None:
    logs = np.array([0.1, 0.3, 0.2, 0.5])
    found = paired_ratio(np.exp(logs), np.ones(4)).estimate()
    low, high = scipy.stats.t.interval(0.95, 3, logs.mean(), scipy.stats.sem(logs))
    assert (found.value, found.low, found.high) == pytest.approx(np.exp([logs.mean(), low, high]))


def test_suites_have_welchs_degrees_of_freedom() -> None:
    """With two suites and opposite signs this is Welch's own t test."""
    a, b = np.array([0.1, 0.3, 0.2, 0.5]), np.array([0.4, 0.9, 0.1])
    both = mean_of_suites([paired_ratio(np.exp(a), np.ones(4)), paired_ratio(np.ones(3), np.exp(b))])
    welch = scipy.stats.ttest_ind(a, b, equal_var=False)
    assert both.freedom == pytest.approx(welch.df)
    assert both.error is not None
    assert both.mean / both.error == pytest.approx(welch.statistic)


def test_without_three_prompts_there_is_no_interval() -> None:
    two, three = paired_ratio(np.ones(2), np.ones(2)), paired_ratio(np.ones(3), np.ones(3))
    assert not two.estimate().has_interval
    assert three.estimate() == Estimate(1.0, 1.0, 1.0)
    assert mean_of_logs(np.full(2, -0.7)).log_estimate() == Estimate(-0.7, None, None)
    assert not mean_of_suites([two, three]).estimate().has_interval
    assert not ratio_of_sums(np.ones(2), np.ones(2)).has_interval


def test_intervals_of_many_comparisons_hold_together() -> None:
    rng = np.random.default_rng(0)
    trials, comparisons = 1000, 12
    wrong = 0
    for _ in range(trials):
        found = [paired_ratio(np.exp(rng.normal(0, SPREAD, 6)), np.ones(6)) for _ in range(comparisons)]
        wrong += not all(covered(each.estimate(comparisons), 1.0) for each in found)
    assert wrong / trials <= 0.05 + 0.014


def test_more_comparisons_need_wider_intervals() -> None:
    one = LogMean(0.0, 0.1, 5).estimate()
    three = LogMean(0.0, 0.1, 5).estimate(3)
    assert three.high is not None
    assert three.high == pytest.approx(np.exp(0.1 * scipy.stats.t.ppf(1 - 0.05 / 6, 5)))
    assert one.high is not None
    assert three.high > one.high


def test_a_proportion_of_nothing_is_bounded_by_what_was_counted() -> None:
    found = proportion(np.zeros(48), np.full(48, 100.0))
    assert (found.value, found.low) == (0.0, 0.0)
    assert found.high == pytest.approx(1 - 0.025 ** (1 / 4800))
    everything = proportion(np.full(48, 100.0), np.full(48, 100.0))
    assert (everything.value, everything.high) == (1.0, 1.0)
    assert everything.low == pytest.approx(0.025 ** (1 / 4800))


def test_a_proportion_of_single_trials_is_clopper_and_pearsons() -> None:
    hits = np.array([1.0, 0, 0, 1, 1, 0, 0, 0, 0, 0])
    found, exact = proportion(hits, np.ones(10)), scipy.stats.binomtest(3, 10).proportion_ci()
    assert found.value == pytest.approx(0.3)
    assert found.low is not None
    assert found.high is not None
    assert found.low <= exact.low < exact.high <= found.high  # the number of trials is not known to be that of prompts
    assert (found.low, found.high) == pytest.approx((exact.low, exact.high), abs=0.05)


def test_too_few_prompts_have_no_interval() -> None:
    assert proportion(np.array([1.0, 0]), np.array([10.0, 10])) == Estimate(0.05, None, None)


@pytest.mark.parametrize(
    ("share", "correlation_of_hits"),
    [(0.001, 0.0), (0.01, 0.0), (0.01, 0.02), (0.05, 0.0), (0.05, 0.02), (0.3, 0.02), (0.3, 0.2)],
)
def test_proportions_cover_whether_hits_come_together_or_not(share: float, correlation_of_hits: float) -> None:
    """``correlation_of_hits`` is the correlation of two tokens of one prompt.

    Nothing covers where nearly all hits are in one or two prompts of very many: most samples have none of those.
    """
    rng = np.random.default_rng(7)
    hits = 0
    counts = np.full(24, 100.0)
    for _ in range(TRIALS):
        own = np.full(24, share)
        if correlation_of_hits:
            own = rng.beta(share * (1 / correlation_of_hits - 1), (1 - share) * (1 / correlation_of_hits - 1), 24)
        hits += covered(proportion(rng.binomial(100, own).astype(float), counts), share)
    assert hits / TRIALS >= 0.93


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.004, "0.00"),
        (1.525, "1.52"),
        (9.994, "9.99"),
        (9.996, "10.0"),
        (34.8, "34.8"),
        (99.96, "100"),
        (999.4, ">999"),
        (998.6, "999"),
        (1e9, ">999"),
    ],
)
def test_large_ratios_have_three_significant_digits(value: float, shown: str) -> None:
    assert times(value) == shown
    assert ratio(Estimate(value, value, value)) == f"{shown}x [{shown}, {shown}]"


def test_bounds_of_shares_without_meaning_are_cut() -> None:
    assert percent(Estimate(0.76, 0.012, 3e7)) == "76% [1%, >99900%]"
