"""The numbers of a summary."""

from dataclasses import astuple, replace
from itertools import pairwise

import numpy as np
import pytest
import scipy

from entmtp.evaluation.analysis.summary import ALL_SUITES, Summary, tables
from entmtp.evaluation.report.run_metrics import arm_metrics
from entmtp.intervals import correlation
from tests.helpers.synthetic_rows import make_rows
from tests.helpers.synthetic_summaries import LIKELIER, PLAIN, summary_of, with_likelihoods, with_seconds


@pytest.fixture(scope="module")
def summary() -> Summary:
    return summary_of(*make_rows(prompts=6))


def test_speed_takes_the_median_of_repetitions_first() -> None:
    requests, steps = make_rows(arms=("hydra",), suites=("gsm8k",), prompts=2, repetitions=3, new_tokens=50)
    times = {("gsm8k-0", 0): 1.0, ("gsm8k-0", 1): 100.0, ("gsm8k-0", 2): 2.0}
    requests = [replace(row, seconds=times.get((row.prompt_id, row.repetition), 3.0)) for row in requests]
    (row,) = summary_of(requests, steps).arms
    assert row.tokens_per_second == pytest.approx((50 + 50) / (2.0 + 3.0))
    assert (row.new_tokens, row.prompts, row.requests) == (100, 2, 6)


def test_speedup_is_the_geometric_mean_of_the_prompts() -> None:
    requests, steps = make_rows(arms=("autoregressive", "entmtp"), suites=("gsm8k",), prompts=4, new_tokens=50)
    slow = {f"gsm8k-{number}": float(number + 1) for number in range(4)}
    requests = [
        replace(
            row, seconds=slow[row.prompt_id] * (1.0 if row.arm == "autoregressive" else 0.5 + 0.1 * slow[row.prompt_id])
        )
        for row in requests
    ]
    found = summary_of(requests, steps).speedup("gsm8k", "entmtp", "autoregressive")
    assert found is not None
    assert found.ratio.value == pytest.approx((0.6 * 0.7 * 0.8 * 0.9) ** -0.25)
    assert found.ratio.low is not None
    assert found.ratio.high is not None
    logs = -np.log([0.6, 0.7, 0.8, 0.9])
    interval = scipy.stats.t.interval(0.95, 3, logs.mean(), scipy.stats.sem(logs))
    assert (found.ratio.low, found.ratio.high) == pytest.approx(np.exp(interval))
    assert found.verdict == "faster"


def test_a_comparison_can_be_read_the_other_way_round() -> None:
    requests, steps = make_rows(arms=("medusa", "hydra"), suites=("gsm8k",), prompts=4)
    rng = np.random.default_rng(0)
    summary = summary_of([replace(row, seconds=float(rng.uniform(1, 2))) for row in requests], steps)
    one, other = summary.speedup("gsm8k", "medusa", "hydra"), summary.speedup("gsm8k", "hydra", "medusa")
    assert one is not None
    assert other is not None
    turned = one.reversed
    assert replace(turned, ratio=other.ratio, log_error=other.log_error) == other
    for ours, theirs in zip(astuple(turned.ratio), astuple(other.ratio), strict=True):
        assert ours == pytest.approx(theirs)


def test_speedup_compares_times_of_equal_work_after_a_tie() -> None:
    requests, steps = make_rows(arms=("autoregressive", "hydra"), suites=("gsm8k",), prompts=3, new_tokens=40)
    requests = [
        replace(row, seconds=4.0) if row.arm == "autoregressive" else replace(row, seconds=1.0, new_tokens=20)
        for row in requests
    ]
    found = summary_of(requests, steps).speedup("gsm8k", "hydra", "autoregressive")
    assert found is not None
    assert found.ratio.value == pytest.approx(2.0)  # half the tokens in a quarter of the time


def test_only_shared_prompts_are_compared() -> None:
    requests, steps = make_rows(arms=("autoregressive", "hydra"), suites=("gsm8k",), prompts=5)
    requests = with_seconds(requests, {"autoregressive": 1.0, "hydra": 2.0})
    requests = [
        replace(row, seconds=1000.0) if (row.arm, row.prompt_id) == ("autoregressive", "gsm8k-4") else row
        for row in requests
        if (row.arm, row.prompt_id) != ("hydra", "gsm8k-4")
    ]
    found = summary_of(requests, steps).speedup("gsm8k", "hydra", "autoregressive")
    assert found is not None
    assert (found.prompts, found.verdict) == (4, "slower")
    assert found.ratio.value == pytest.approx(0.5)


def test_suites_are_averaged_geometrically() -> None:
    requests, steps = make_rows(arms=("autoregressive", "entmtp"), suites=("gsm8k", "sharegpt"), prompts=3)
    factor = {"gsm8k": 2.0, "sharegpt": 8.0}
    requests = [replace(row, seconds=factor[row.suite] if row.arm == "autoregressive" else 1.0) for row in requests]
    found = summary_of(requests, steps).speedup(ALL_SUITES, "entmtp", "autoregressive")
    assert found is not None
    assert (found.ratio.value, found.ratio.low, found.ratio.high) == pytest.approx((4.0, 4.0, 4.0))
    assert (found.suites, found.prompts) == (2, 6)


def test_tau_counts_the_root(summary: Summary) -> None:
    taus = {(row.suite, row.arm): row.tau.value for row in summary.arms}
    assert taus["gsm8k", "autoregressive"] == 1.0
    assert taus["gsm8k", "hydra"] > 1.3


def test_time_of_a_step_adds_up() -> None:
    requests, steps = make_rows(arms=("hydra",), suites=("gsm8k",), prompts=3)
    (row,) = summary_of(requests, steps).arms
    total = sum(request.seconds for request in requests)
    count = sum(request.steps for request in requests)
    parts = row.draft_ms + row.verify_ms + row.accept_ms + row.policy_ms + row.other_ms
    assert row.other_ms > 0
    assert parts * count / 1000 + row.prefill_ms * len(requests) / 1000 == pytest.approx(total)


def test_acceptance_counts_only_steps_that_reach_the_depth() -> None:
    requests, steps = make_rows(arms=("hydra",), suites=("gsm8k",), prompts=1, repetitions=1)
    shapes = [(1, 1), (1, 2), (2, 1), (2, 3), (2, 2), (3, 2), (4, 2)]  # (depth of the tree, accepted tokens)
    steps = [
        replace(step, depth=depth, accepted=accepted) for step, (depth, accepted) in zip(steps, shapes, strict=False)
    ]
    found = summary_of(requests, steps)
    rates = {row.depth: (row.steps, row.rate, row.conditional) for row in found.depths}
    # Rate: over all steps that reach the depth. Conditional: over those that accepted the depth before.
    assert rates == {1: (7, 5 / 7, 5 / 7), 2: (5, 1 / 5, 1 / 4), 3: (2, 0.0, None), 4: (1, 0.0, None)}
    assert tables(found)["acceptance"]["conditional"].to_pylist() == [5 / 7, 1 / 4, None, None]
    metrics = arm_metrics(found, found.arms[0])
    assert (metrics["acceptance_depth_2"], metrics["conditional_acceptance_depth_2"]) == (1 / 5, 1 / 4)
    assert "conditional_acceptance_depth_3" not in metrics


def test_scores_are_averaged_over_scored_prompts() -> None:
    requests, steps = make_rows(arms=("hydra",), suites=("gsm8k",), prompts=3, repetitions=2)
    scores = {"gsm8k-0": 1.0, "gsm8k-1": 0.0, "gsm8k-2": None}
    (row,) = summary_of([replace(row, score=scores[row.prompt_id]) for row in requests], steps).arms
    assert (row.score, row.scored) == (0.5, 2)


def test_likelihoods_are_means_over_prompts_and_compared_prompt_by_prompt() -> None:
    requests, steps = make_rows(arms=("autoregressive", "hydra", "medusa"), suites=("gsm8k",), prompts=4)
    summary = summary_of(
        with_likelihoods(requests, {"autoregressive": PLAIN, "hydra": LIKELIER, "medusa": PLAIN}), steps
    )
    plain = next(row.log_likelihood for row in summary.arms if row.arm == "autoregressive")
    low, high = scipy.stats.t.interval(0.95, 3, np.mean(PLAIN), scipy.stats.sem(PLAIN))
    assert (plain.value, plain.low, plain.high) == pytest.approx((np.mean(PLAIN), low, high))
    found = summary.likelihood("gsm8k", "hydra")
    paired = scipy.stats.ttest_rel(LIKELIER, PLAIN).confidence_interval(0.95)
    assert found is not None
    assert found.prompts == 4
    assert (found.difference.value, found.difference.low, found.difference.high) == pytest.approx(
        (np.mean(LIKELIER) - np.mean(PLAIN), paired.low, paired.high)
    )
    same = summary.likelihood("gsm8k", "medusa")
    assert same is not None
    assert (same.difference.value, same.difference.low, same.difference.high) == (0, 0, 0)
    assert summary.likelihood("gsm8k", "autoregressive") is None


def test_likelihoods_of_repetitions_are_one_and_of_other_prompts_are_left_out() -> None:
    requests, steps = make_rows(arms=("autoregressive", "hydra"), suites=("gsm8k",), prompts=4, repetitions=2)
    rows = [
        replace(row, log_likelihood=-1.0 - row.repetition if row.arm == "hydra" else -1.0)
        for row in requests
        if (row.arm, row.prompt_id) != ("hydra", "gsm8k-3")
    ]
    found = summary_of(rows, steps).likelihood("gsm8k", "hydra")
    assert found is not None
    assert (found.difference.value, found.prompts) == (-0.5, 3)


def test_suites_weigh_alike_in_the_likelihoods_difference() -> None:
    requests, steps = make_rows(arms=("autoregressive", "hydra"), suites=("gsm8k", "sharegpt"), prompts=4)
    gain = {"gsm8k": 0.1, "sharegpt": 0.3}
    rows = [
        replace(row, log_likelihood=gain[row.suite] - 1.0 if row.arm == "hydra" else -1.0)
        for row in requests
        if row.prompt_id != "gsm8k-3"
    ]
    found = summary_of(rows, steps).likelihood(ALL_SUITES, "hydra")
    assert found is not None
    assert found.difference.value == pytest.approx(0.2)
    assert (found.suites, found.prompts) == (2, 7)


def test_likelihoods_are_metrics() -> None:
    requests, steps = make_rows(arms=("autoregressive", "hydra"), suites=("gsm8k",), prompts=4)
    summary = summary_of(with_likelihoods(requests, {"autoregressive": PLAIN, "hydra": LIKELIER}), steps)
    plain, hydra = (arm_metrics(summary, row) for row in summary.arms)
    assert plain["log_likelihood"] == pytest.approx(np.mean(PLAIN))
    assert hydra["log_likelihood_low"] < hydra["log_likelihood"] < hydra["log_likelihood_high"]
    assert hydra["log_likelihood_against_autoregressive"] == pytest.approx(0.3)
    assert "log_likelihood_against_autoregressive" not in plain


def test_intervals_are_the_same_every_time(summary: Summary) -> None:
    again = summary_of(*make_rows(prompts=6))
    assert tables(again)["speedups"] == tables(summary)["speedups"]


def test_correlation_is_pearsons() -> None:
    rng = np.random.default_rng(2)
    x = [rng.normal(size=size) for size in (20, 30, 40)]
    y = [0.5 * part + rng.normal(size=len(part)) for part in x]
    found = correlation(x, y)
    assert found.value == pytest.approx(scipy.stats.pearsonr(np.concatenate(x), np.concatenate(y)).statistic)
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.value < found.high


def test_correlation_without_variation_has_no_interval() -> None:
    found = correlation([np.ones(5)] * 4, [np.arange(5.0)] * 4)
    assert np.isnan(found.value)
    assert not found.has_interval


def test_accepted_tokens_fall_with_entropy(summary: Summary) -> None:
    bins = [row for row in summary.entropy_bins if row.suite == "humaneval"]
    assert {row.arm for row in bins} == {"hydra"}  # a constant tree
    assert bins[0].accepted.value > bins[-1].accepted.value + 0.5
    assert all(left.entropy_to <= right.entropy_from for left, right in pairwise(bins))
    found = next(row for row in summary.entropy_correlations if row.suite == "humaneval" and row.signal == "entropy")
    assert found.correlation.high is not None
    assert found.correlation.high < 0
    assert found.steps == sum(row.steps for row in bins)
