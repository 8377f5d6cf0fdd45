"""Makes the summary of benchmark rows: each arm on each suite, and comparisons of arms on the same prompts."""

from collections.abc import Mapping
from statistics import fmean

import pyarrow as pa
import pyarrow.compute as pc

from entmtp import methods
from entmtp.evaluation.analysis.by_prompt import (
    Prompts,
    accepted_per_step,
    by_arm,
    likelihood_differences,
    log_likelihoods,
    paired_seconds,
    scores,
    tokens,
    tokens_per_second,
)
from entmtp.evaluation.analysis.entropy import entropy_relation
from entmtp.evaluation.analysis.summary import (
    ALL_SUITES,
    BASELINES,
    ArmSummary,
    DepthAcceptance,
    LikelihoodDifference,
    Speedup,
    Summary,
)
from entmtp.evaluation.analysis.tree_sizes import entropy_quantiles, tree_shares, tree_uses
from entmtp.intervals import mean_of_logs, mean_of_suites, paired_ratio
from entmtp.methods import AUTOREGRESSIVE, order

TIE_MARGIN = 1e-4  # top-2 logits closer than this are a tie: either token is the model's own greedy choice

_HEAVY = ("text", "token_ids")

_Runs = Mapping[tuple[str, str], Prompts]  # by (suite, arm)


def summarise(requests: pa.Table, steps: pa.Table) -> Summary:
    """Summarise benchmark rows (`rows.read_parts`).

    Tokens per second and speedups take the median over repetitions of each prompt first. Intervals are those of
    `entmtp.intervals`, over prompts.
    """
    runs = by_arm(requests.drop_columns(_HEAVY))
    trees = _different_trees(steps)
    bins, correlations = entropy_relation(steps, list(runs))
    return Summary(
        arms=[_arm_summary(*key, prompts, trees.get(key, 0)) for key, prompts in runs.items()],
        speedups=[row for arm, baseline in _pairs(runs) for row in _speedups(runs, arm, baseline)],
        likelihoods=[row for arm in _arms(runs) for row in _likelihoods(runs, arm)],
        depths=[row for suite, arm in runs for row in _depth_acceptance(steps, suite, arm)],
        entropy_bins=bins,
        entropy_correlations=correlations,
        tree_shares=tree_shares(steps, list(runs)),
        tree_uses=tree_uses(steps, list(runs)),
        entropy_quantiles=entropy_quantiles(steps, list(runs)),
    )


def _different_trees(steps: pa.Table) -> dict[tuple[str, str], int]:
    """Number of topologies that the steps of each (suite, arm) used."""
    counted = steps.group_by(["suite", "arm"]).aggregate([("tree", "count_distinct")]).to_pylist()
    return {(row["suite"], row["arm"]): row["tree_count_distinct"] for row in counted}


def _arm_summary(suite: str, arm: str, prompts: Prompts, trees: int) -> ArmSummary:
    requests = [request for repetitions in prompts.values() for request in repetitions]
    steps = max(1, sum(request["steps"] for request in requests))

    def per_step(seconds: str) -> float:
        return 1000 * sum(request[seconds] for request in requests) / steps

    parts = {name: per_step(f"{name}_seconds") for name in ("draft", "verify", "accept", "policy")}
    prefill = per_step("prefill_seconds")
    scored = scores(prompts)
    return ArmSummary(
        suite=suite,
        source="+".join(sorted({request["source"] for request in requests})),
        arm=arm,
        prompts=len(prompts),
        requests=len(requests),
        new_tokens=round(sum(map(tokens, prompts.values()))),
        tokens_per_second=tokens_per_second(prompts),
        tau=accepted_per_step(prompts),
        draft_ms=parts["draft"],
        verify_ms=parts["verify"],
        accept_ms=parts["accept"],
        policy_ms=parts["policy"],
        other_ms=per_step("seconds") - prefill - sum(parts.values()),
        prefill_ms=prefill * steps / len(requests),
        nodes=sum(request["drafted"] for request in requests) / steps,
        trees=trees,
        identical=sum(request["identical"] for request in requests),
        captures=sum(request["captures"] for request in requests),
        unsettled_steps=sum(request["unsettled_steps"] for request in requests),
        ties=sum(not request["identical"] and request["tie_margin"] < TIE_MARGIN for request in requests),
        score=fmean(scored) if scored else None,
        scored=len(scored),
        log_likelihood=mean_of_logs(log_likelihoods(prompts)).log_estimate(),
    )


def _arms(runs: _Runs) -> list[str]:
    return sorted({arm for _, arm in runs}, key=order)


def _pairs(runs: _Runs) -> list[tuple[str, str]]:
    """The (arm, baseline) pairs that are compared."""
    arms = _arms(runs)
    pairs = [(arm, baseline) for baseline in BASELINES if baseline in arms for arm in arms if arm != baseline]
    adaptive = [arm for arm in methods.adaptive() if arm in arms]
    return pairs + [(arm, other) for arm in adaptive for other in arms if other not in (arm, *BASELINES)]


def _speedups(runs: _Runs, arm: str, baseline: str) -> list[Speedup]:
    """One comparison per suite with shared prompts, and one over these suites."""
    pairs = {
        suite: paired_seconds(runs.get((suite, arm), {}), runs.get((suite, baseline), {}))
        for suite in dict.fromkeys(suite for suite, _ in runs)
    }
    ratios = {suite: paired_ratio(theirs, ours) for suite, (ours, theirs) in pairs.items() if len(ours)}
    if not ratios:
        return []
    prompts = [len(pairs[suite][0]) for suite in ratios]
    rows = [
        Speedup.of(ratio, suite=suite, arm=arm, baseline=baseline, prompts=[count])
        for (suite, ratio), count in zip(ratios.items(), prompts, strict=True)
    ]
    overall = mean_of_suites(list(ratios.values()))
    return [*rows, Speedup.of(overall, suite=ALL_SUITES, arm=arm, baseline=baseline, prompts=prompts)]


def _likelihoods(runs: _Runs, arm: str) -> list[LikelihoodDifference]:
    """Differences to plain decoding: a row per suite with shared prompts, and one over these suites."""
    differences = {
        suite: likelihood_differences(runs.get((suite, arm), {}), runs.get((suite, AUTOREGRESSIVE), {}))
        for suite in dict.fromkeys(suite for suite, _ in runs)
    }
    means = {suite: mean_of_logs(values) for suite, values in differences.items() if len(values)}
    if not means or arm == AUTOREGRESSIVE:
        return []
    prompts = [len(differences[suite]) for suite in means]
    rows = [
        LikelihoodDifference.of(mean, suite=suite, arm=arm, prompts=[count])
        for (suite, mean), count in zip(means.items(), prompts, strict=True)
    ]
    overall = mean_of_suites(list(means.values()))
    return [*rows, LikelihoodDifference.of(overall, suite=ALL_SUITES, arm=arm, prompts=prompts)]


def _depth_acceptance(steps: pa.Table, suite: str, arm: str) -> list[DepthAcceptance]:
    table = steps.filter((pc.field("suite") == suite) & (pc.field("arm") == arm))
    tree_depth, accepted_depth = table["depth"].to_numpy(), table["accepted"].to_numpy() - 1
    rows = []
    for depth in range(1, int(tree_depth.max(initial=0)) + 1):
        reaching = accepted_depth[tree_depth >= depth]
        accepted, parents = int((reaching >= depth).sum()), int((reaching >= depth - 1).sum())
        rows.append(
            DepthAcceptance(
                suite=suite,
                arm=arm,
                depth=depth,
                steps=len(reaching),
                rate=accepted / len(reaching),
                conditional=accepted / parents if parents else None,
            )
        )
    return rows
