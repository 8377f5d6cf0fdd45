"""Conclusions and caveats: the sentences that are made from a summary."""

from dataclasses import replace

import scipy

from entmtp.evaluation.analysis.conclusions import caveats, comparisons, conclusions
from entmtp.evaluation.analysis.summary import ALL_SUITES
from entmtp.evaluation.report.run_metrics import arm_metrics
from tests.helpers.synthetic_rows import make_rows
from tests.helpers.synthetic_summaries import PLAIN, summary_of, with_likelihoods, with_seconds


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


def test_scores_of_texts_that_solve_nothing_compare_nothing() -> None:
    requests, steps = make_rows(arms=("autoregressive", "hydra"), suites=("humaneval",), prompts=4)
    unsolved = summary_of([replace(row, score=0.0) for row in requests], steps)
    said = "humaneval pass@1 over 4 prompts: 0.000 with every arm (none was solved, so it compares nothing)"
    assert said in conclusions(unsolved)


def test_likelihoods_are_reported_with_who_differs_and_by_how_much() -> None:
    requests, steps = make_rows(arms=("autoregressive", "hydra", "medusa"), suites=("gsm8k",), prompts=4)
    begin = "log-likelihood of the texts against autoregressive's, nats per token: "
    rounded = [value + 1e-5 for value in PLAIN]
    same = {"autoregressive": PLAIN, "hydra": PLAIN, "medusa": rounded}
    assert f"{begin}the same with every arm" in conclusions(summary_of(with_likelihoods(requests, same), steps))
    shifts = [0.01, -0.01, 0.01, -0.01]
    other = same | {"hydra": [value + shift for value, shift in zip(PLAIN, shifts, strict=True)]}
    half = scipy.stats.t.ppf(1 - 0.05 / 4, 3) * scipy.stats.sem(shifts)  # of two comparisons
    wanted = f"{begin}the same with medusa; +0.000 [{-half:.3f}, {half:.3f}] with hydra"
    assert wanted in conclusions(summary_of(with_likelihoods(requests, other), steps))
    few = summary_of(*make_rows(arms=("autoregressive", "hydra"), suites=("gsm8k",), prompts=2))
    assert not any("log-likelihood" in line for line in conclusions(few))


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


def test_verdicts_say_faster_slower_and_inconclusive() -> None:
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
        "entmtp against hydra-best: inconclusive, 1.00x [1.00, 1.00], the interval holds 1"
        " (2 suites, 8 prompts, paired t)" in sentences
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
    assert not any(sentence.startswith("entmtp-dynamic against random") for sentence in sentences)
    assert sentences[0].startswith("entmtp is")
    assert summary.speedup("gsm8k", "entmtp-dynamic", "entmtp-transfer") is not None


def test_where_the_first_adaptive_arm_is_best_its_sentences_are_said_once() -> None:
    summary = summary_of(*make_rows(arms=("autoregressive", "hydra", "entmtp"), suites=("gsm8k",), prompts=4))
    assert summary.best_adaptive == "entmtp"
    assert sum("entmtp is faster than hydra" in sentence for sentence in conclusions(summary)) == 1


def test_without_plain_decoding_no_arm_is_best() -> None:
    assert summary_of(*make_rows(arms=("entmtp",), suites=("gsm8k",), prompts=3)).best_adaptive is None


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


def test_code_that_is_not_the_commits_is_a_caveat() -> None:
    full = summary_of(*make_rows(arms=("autoregressive",), suites=("gsm8k",), prompts=3))
    assert caveats(full, {"git_commit": "abc", "measured_commits": ["abc"]}) == []
    assert caveats(full, {"git_commit": None, "measured_commits": ["unknown"]}) == []
    (mixed,) = caveats(full, {"git_commit": "abc", "measured_commits": ["abc", "unknown"]})
    assert mixed == "Not all of it was measured by the code of commit abc, but at abc, unknown."
    (changed,) = caveats(full, {"git_commit": "abc+", "measured_commits": ["abc+"]})
    assert changed.startswith("Files of the code differed")


def test_caveats_say_how_texts_are_drawn() -> None:
    full = summary_of(*make_rows(arms=("autoregressive",), suites=("gsm8k",), prompts=3))
    drawn = {"settings": {"temperature": 0.7, "acceptance": "rejection"}}
    (seed,) = caveats(full, drawn)
    assert "at temperature 0.7, with one seed for all arms" in seed
    assert caveats(full, {"settings": {"temperature": 0.0, "acceptance": "rejection"}}) == []
    typical = caveats(full, {"settings": drawn["settings"] | {"acceptance": "typical"}})
    assert typical[0] == seed
    assert "only autoregressive is lossless here" in typical[1]


def test_an_adaptive_arm_that_never_drafted_or_never_changed_its_tree_is_a_caveat() -> None:
    arms, suites = ("autoregressive", "entmtp", "entmtp-dynamic"), ("gsm8k", "humaneval")
    summary = summary_of(*make_rows(arms=arms, suites=suites))
    rows = [replace(row, trees=1, nodes=0.0 if row.suite == "gsm8k" else 3.0) for row in summary.arms]
    said = caveats(replace(summary, arms=rows), {})
    for arm in arms[1:]:
        assert (
            f"gsm8k: {arm} drafted nothing: at this machine's step costs no tree was predicted to be faster than plain"
            " decoding."
        ) in said
    assert "humaneval: entmtp used one tree at every step of these texts, so it is a static tree there." in said
    assert len(said) == 3
