from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from scipy import stats

from entmtp.evaluation.analysis.conclusions import caveats, comparisons, conclusions
from entmtp.evaluation.analysis.summarise import summarise
from entmtp.evaluation.analysis.summary import ALL_SUITES, Summary, tables
from entmtp.evaluation.report.run_metrics import arm_metrics
from entmtp.evaluation.results.rows import REQUEST_SCHEMA, STEP_SCHEMA, RequestRow, StepRow, as_table
from entmtp.intervals import correlation
from tests.helpers.synthetic_rows import make_rows


def summary_of(requests: list[RequestRow], steps: list[StepRow]) -> Summary:
    return summarise(as_table(requests, REQUEST_SCHEMA), as_table(steps, STEP_SCHEMA))


@pytest.fixture(scope="module")
def summary() -> Summary:
    return summary_of(*make_rows(prompts=6))


def with_seconds(rows: list[RequestRow], seconds: dict[str, float]) -> list[RequestRow]:
    """The same rows, every request of an arm taking the given time."""
    return [replace(row, seconds=seconds[row.arm]) for row in rows]


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
    interval = stats.t.interval(0.95, 3, logs.mean(), stats.sem(logs))
    assert (found.ratio.low, found.ratio.high) == pytest.approx(np.exp(interval))
    assert found.verdict == "faster"


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


def test_scores_are_reported_by_name_with_their_count_and_who_differs() -> None:
    requests, steps = make_rows(arms=("autoregressive", "hydra"), suites=("humaneval", "litbench"), prompts=4)
    same = [replace(row, score=1.0 if row.suite == "humaneval" else None) for row in requests]
    summary = summary_of(same, steps)
    assert "humaneval pass@1 over 4 prompts: 1.000 with every arm" in conclusions(summary)
    rows = {(row.suite, row.arm): arm_metrics(summary, row) for row in summary.arms}
    assert (rows["humaneval", "hydra"]["pass_at_1"], rows["humaneval", "hydra"]["scored"]) == (1.0, 4)
    assert not {"pass_at_1", "exact_match", "score"} & set(rows["litbench", "hydra"])

    worse = [replace(row, score=0.5) if row.score and row.arm == "hydra" else row for row in same]
    sentence = "humaneval pass@1 over 4 prompts: 1.000 with autoregressive; 0.500 with hydra"
    assert sentence in conclusions(summary_of(worse, steps))


def with_likelihoods(rows: list[RequestRow], of: dict[str, list[float]]) -> list[RequestRow]:
    """The same rows, prompt by prompt with these log-likelihoods of each arm."""
    return [replace(row, log_likelihood=of[row.arm][int(row.prompt_id.rpartition("-")[2])]) for row in rows]


PLAIN, LIKELIER = [-0.9, -0.5, -0.7, -0.4], [-0.5, -0.3, -0.4, -0.1]


def test_likelihoods_are_means_over_prompts_and_compared_prompt_by_prompt() -> None:
    requests, steps = make_rows(arms=("autoregressive", "hydra", "medusa"), suites=("gsm8k",), prompts=4)
    summary = summary_of(
        with_likelihoods(requests, {"autoregressive": PLAIN, "hydra": LIKELIER, "medusa": PLAIN}), steps
    )
    plain = next(row.log_likelihood for row in summary.arms if row.arm == "autoregressive")
    low, high = stats.t.interval(0.95, 3, np.mean(PLAIN), stats.sem(PLAIN))
    assert (plain.value, plain.low, plain.high) == pytest.approx((np.mean(PLAIN), low, high))
    found = summary.likelihood("gsm8k", "hydra")
    paired = stats.ttest_rel(LIKELIER, PLAIN).confidence_interval(0.95)
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


def test_likelihoods_are_reported_with_who_differs_and_by_how_much() -> None:
    requests, steps = make_rows(arms=("autoregressive", "hydra", "medusa"), suites=("gsm8k",), prompts=4)
    begin = "log-likelihood of the texts against autoregressive's, nats per token: "
    rounded = [value + 1e-5 for value in PLAIN]
    same = {"autoregressive": PLAIN, "hydra": PLAIN, "medusa": rounded}
    assert f"{begin}the same with every arm" in conclusions(summary_of(with_likelihoods(requests, same), steps))
    shifts = [0.01, -0.01, 0.01, -0.01]
    other = same | {"hydra": [value + shift for value, shift in zip(PLAIN, shifts, strict=True)]}
    half = stats.t.ppf(1 - 0.05 / 4, 3) * stats.sem(shifts)  # of two comparisons
    wanted = f"{begin}the same with medusa; +0.000 [{-half:.3f}, {half:.3f}] with hydra"
    assert wanted in conclusions(summary_of(with_likelihoods(requests, other), steps))
    few = summary_of(*make_rows(arms=("autoregressive", "hydra"), suites=("gsm8k",), prompts=2))
    assert not any("log-likelihood" in line for line in conclusions(few))


def test_likelihoods_are_metrics() -> None:
    requests, steps = make_rows(arms=("autoregressive", "hydra"), suites=("gsm8k",), prompts=4)
    summary = summary_of(with_likelihoods(requests, {"autoregressive": PLAIN, "hydra": LIKELIER}), steps)
    plain, hydra = (arm_metrics(summary, row) for row in summary.arms)
    assert plain["log_likelihood"] == pytest.approx(np.mean(PLAIN))
    assert hydra["log_likelihood_low"] < hydra["log_likelihood"] < hydra["log_likelihood_high"]
    assert hydra["log_likelihood_against_autoregressive"] == pytest.approx(0.3)
    assert "log_likelihood_against_autoregressive" not in plain


def test_a_lossy_arm_is_not_counted_among_those_that_should_write_the_same() -> None:
    requests, steps = make_rows(arms=("autoregressive", "medusa"), suites=("gsm8k",), prompts=4, repetitions=1)
    lossy = [
        replace(row, arm="medusa-typical", identical=False, first_difference=3)
        for row in requests
        if row.arm == "medusa"
    ]
    lossy_steps = [replace(step, arm="medusa-typical") for step in steps if step.arm == "medusa"]
    sentences = conclusions(summary_of(requests + lossy, steps + lossy_steps))
    assert sentences[-1].startswith("all 4 requests of the other arms wrote exactly")


def test_typical_acceptance_is_a_caveat() -> None:
    summary = summary_of(*make_rows(arms=("autoregressive", "hydra"), suites=("gsm8k",), prompts=4))
    typical = {"settings": {"acceptance": "typical"}}
    assert any(line.startswith("Typical acceptance") for line in caveats(summary, typical))
    assert not any(line.startswith("Typical acceptance") for line in caveats(summary, {}))


def test_sixteen_bits_are_a_caveat() -> None:
    summary = summary_of(*make_rows(arms=("autoregressive", "hydra"), suites=("gsm8k",), prompts=4))
    assert any(line.startswith("All ran in bfloat16") for line in caveats(summary, {"dtype": "bfloat16"}))
    assert not any(line.startswith("All ran in") for line in caveats(summary, {"dtype": "float32"}))


def test_ties_are_distinguished_from_real_differences() -> None:
    requests, steps = make_rows(arms=("autoregressive", "hydra"), suites=("gsm8k",), prompts=3, repetitions=1)
    margins = {"gsm8k-0": 1e-6, "gsm8k-1": 0.3}
    requests = [
        replace(row, identical=False, first_difference=5, tie_margin=margins[row.prompt_id])
        if row.arm == "hydra" and row.prompt_id in margins
        else row
        for row in requests
    ]
    summary = summary_of(requests, steps)
    assert [(row.identical, row.ties) for row in summary.arms if row.arm == "hydra"] == [(1, 1)]
    assert "1 of 3 requests" in conclusions(summary)[-1]
    assert "1 first differ at a tie of the two best tokens, 1 differ without one" in conclusions(summary)[-1]


def test_intervals_are_the_same_every_time(summary: Summary) -> None:
    again = summary_of(*make_rows(prompts=6))
    assert tables(again)["speedups"] == tables(summary)["speedups"]


def test_correlation_is_pearsons() -> None:
    rng = np.random.default_rng(2)
    x = [rng.normal(size=size) for size in (20, 30, 40)]
    y = [0.5 * part + rng.normal(size=len(part)) for part in x]
    found = correlation(x, y)
    assert found.value == pytest.approx(stats.pearsonr(np.concatenate(x), np.concatenate(y)).statistic)
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


def test_verdicts_say_faster_slower_and_level() -> None:
    requests, steps = make_rows(suites=("gsm8k", "litbench"), prompts=4)
    seconds = {"autoregressive": 1.0, "medusa": 2.0, "hydra": 1.5, "medusa-best": 0.5, "hydra-best": 0.8}
    others = {
        "entmtp": 0.8,
        "entmtp-goodput": 0.7,
        "entmtp-dynamic": 0.65,
        "entmtp-transfer": 0.7,
        "entmtp-mixed": 0.7,
        "always-big": 2.5,
        "random": 0.9,
        "bank-oracle": 0.6,
        "hindsight": 0.4,
    }
    requests = with_seconds(requests, seconds | others)
    sentences = conclusions(summary_of(requests, steps))
    assert "entmtp is faster than medusa: 2.50x [2.50, 2.50] (2 suites, 8 prompts, paired t)" in sentences
    assert "entmtp is slower than medusa-best: 0.62x [0.62, 0.62] (2 suites, 8 prompts, paired t)" in sentences
    assert (
        "entmtp is level with hydra-best: 1.00x [1.00, 1.00], the interval holds 1 (2 suites, 8 prompts, paired t)"
        in sentences
    )
    assert "entmtp-dynamic reaches 92% [92%, 92%] of bank-oracle's speed (2 suites, 8 prompts, paired t)" in sentences
    assert "entmtp-goodput reaches 57% [57%, 57%] of hindsight's speed (2 suites, 8 prompts, paired t)" in sentences
    assert "entmtp reaches 75% [75%, 75%] of bank-oracle's speed (2 suites, 8 prompts, paired t)" in sentences
    assert "hydra is slower than autoregressive: 0.67x [0.67, 0.67] (2 suites, 8 prompts, paired t)" in sentences
    assert sentences[-1].startswith("all 312 requests of the other arms wrote exactly")


def test_the_best_adaptive_arm_is_the_fastest_and_no_sentence_comes_twice() -> None:
    requests, steps = make_rows(suites=("gsm8k", "litbench"), prompts=4)
    seconds = dict.fromkeys({row.arm for row in requests}, 1.0) | {"entmtp": 0.9, "entmtp-goodput": 0.5}
    summary = summary_of(with_seconds(requests, seconds | {"bank-oracle": 0.4}), steps)
    assert summary.best_adaptive == "entmtp-goodput"
    sentences = conclusions(summary)
    assert len(sentences) == len(set(sentences))
    assert "entmtp-goodput is faster than random: 2.00x [2.00, 2.00] (2 suites, 8 prompts, paired t)" in sentences
    assert "entmtp-goodput reaches 80% [80%, 80%] of bank-oracle's speed (2 suites, 8 prompts, paired t)" in sentences
    assert not any(sentence.startswith("entmtp-dynamic is level with random") for sentence in sentences)
    assert sentences[0].startswith("entmtp is")
    assert summary.speedup("gsm8k", "entmtp-dynamic", "entmtp-transfer") is not None


def test_where_the_first_adaptive_arm_is_best_its_sentences_are_said_once() -> None:
    summary = summary_of(*make_rows(arms=("autoregressive", "hydra", "entmtp"), suites=("gsm8k",), prompts=4))
    assert summary.best_adaptive == "entmtp"
    assert sum("entmtp is faster than hydra" in sentence for sentence in conclusions(summary)) == 1


def test_without_plain_decoding_no_arm_is_best() -> None:
    assert summary_of(*make_rows(arms=("entmtp",), suites=("gsm8k",), prompts=3)).best_adaptive is None


def test_equal_arms_are_distinguished_in_one_of_twenty_runs_at_most() -> None:
    """A thousand benchmarks of three arms that take the same time: four suites of six prompts, one comparison each."""
    rng = np.random.default_rng(3)
    requests, steps = make_rows(arms=("autoregressive", "hydra", "entmtp"), prompts=6, repetitions=1)
    steps = steps[:1]
    wrong = claims = 0
    for _ in range(1000):
        drawn = [replace(row, seconds=float(np.exp(0.2 * rng.gamma(4)))) for row in requests]
        claimed = [line for line in conclusions(summary_of(drawn, steps)) if " is " in line and "suites," in line]
        assert len(claimed) == 3
        claims += len(claimed)
        wrong += sum("is level with" not in line for line in claimed)
    assert wrong / claims <= 0.05
    assert wrong  # or intervals would be wider than they must be


def test_the_best_of_several_is_judged_among_all_that_it_was_chosen_from() -> None:
    requests, steps = make_rows(suites=("gsm8k", "litbench"), prompts=6)
    one = summary_of(requests, steps)
    assert comparisons(one) > len([line for line in conclusions(one) if "suites," in line])
    fewer = [row for row in requests if not row.arm.startswith("entmtp-")]
    assert comparisons(summary_of(fewer, steps)) < comparisons(one)
    sentence = f"{comparisons(one)} comparisons were possible"
    assert any(sentence in line for line in conclusions(one))


def test_too_few_prompts_give_no_claim() -> None:
    requests, steps = make_rows(arms=("autoregressive", "entmtp"), suites=("gsm8k", "litbench"), prompts=3)
    requests = [row for row in requests if row.prompt_id != "litbench-2"]
    summary = summary_of(requests, steps)
    found = summary.speedup(ALL_SUITES, "entmtp", "autoregressive")
    assert found is not None
    assert (found.verdict, found.ratio.has_interval) == ("no claim", False)
    sentence = conclusions(summary)[0]
    assert sentence.startswith("entmtp against autoregressive: no claim, an interval needs at least 3 prompts")
    assert f"{found.ratio.value:.2f}" not in sentence
    assert any("litbench (2)" in caveat for caveat in caveats(summary, {}))


def test_caveats_name_samples_quick_runs_and_single_repetitions() -> None:
    summary = summary_of(*make_rows(arms=("autoregressive",), suites=("gsm8k", "litbench"), prompts=3, repetitions=1))
    said = "\n".join(caveats(summary, {"profile": "quick"}))
    assert "litbench: prompts are this project's own small sample" in said
    assert "gsm8k: prompts" not in said
    assert "not a study" in said
    assert "single repetition" in said
    full = summary_of(*make_rows(arms=("autoregressive",), suites=("gsm8k",), prompts=3))
    assert caveats(full, {"profile": "full"}) == []


def test_caveats_say_how_texts_are_drawn() -> None:
    full = summary_of(*make_rows(arms=("autoregressive",), suites=("gsm8k",), prompts=3))
    drawn = {"settings": {"temperature": 0.7, "acceptance": "rejection"}}
    (seed,) = caveats(full, drawn)
    assert "at temperature 0.7, with one seed for all arms" in seed
    assert caveats(full, {"settings": {"temperature": 0.0, "acceptance": "rejection"}}) == []
    typical = caveats(full, {"settings": drawn["settings"] | {"acceptance": "typical"}})
    assert typical[0] == seed
    assert "only autoregressive is lossless here" in typical[1]
