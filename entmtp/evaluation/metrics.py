"""From rows to numbers: what each arm did on each suite, and how arms compare on the same prompts."""

from collections.abc import Mapping, Sequence
from statistics import fmean

import pyarrow as pa
import pyarrow.compute as pc

from entmtp.evaluation.by_prompt import (
    Prompts,
    accepted_per_step,
    arm_place,
    by_arm,
    paired_seconds,
    scores,
    tokens,
    tokens_per_second,
)
from entmtp.evaluation.entropy import entropy_relation
from entmtp.evaluation.intervals import Floats, estimate, mean_of_strata, resampled_ratios
from entmtp.evaluation.shares import entropy_quantiles, tree_shares
from entmtp.evaluation.summary import (
    ADAPTIVE,
    ALL_SUITES,
    AUTOREGRESSIVE,
    ArmSummary,
    DepthAcceptance,
    Speedup,
    Summary,
)

TIE_MARGIN = 1e-4  # top-2 logits closer than this are a tie: either token is the model's own greedy choice

_BASELINES = (AUTOREGRESSIVE, "medusa", "hydra")  # every arm is compared with these, adaptive ones with every arm
_HEAVY = ("text", "token_ids")

_Runs = Mapping[tuple[str, str], Prompts]  # by (suite, arm)


def summarise(requests: pa.Table, steps: pa.Table) -> Summary:
    """Summarise benchmark rows (`rows.read_parts`).

    Tokens per second and speedups take the median over repetitions of each prompt first. Intervals are 95% bootstrap
    intervals over prompts; those over all suites resample each suite by itself and average the suites geometrically.
    """
    runs = by_arm(requests.drop_columns(_HEAVY))
    trees = _different_trees(steps)
    bins, correlations = entropy_relation(steps, list(runs))
    return Summary(
        arms=[_arm_summary(*key, prompts, trees.get(key, 0)) for key, prompts in runs.items()],
        speedups=[row for arm, baseline in _pairs(runs) for row in _speedups(runs, arm, baseline)],
        depths=[row for suite, arm in runs for row in _depth_acceptance(steps, suite, arm)],
        entropy_bins=bins,
        entropy_correlations=correlations,
        tree_shares=tree_shares(steps, list(runs)),
        entropy_quantiles=entropy_quantiles(steps, list(runs)),
    )


def _different_trees(steps: pa.Table) -> dict[tuple[str, str], int]:
    """How many topologies the steps of each (suite, arm) used."""
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
        tau=accepted_per_step(prompts, f"{suite} {arm}"),
        draft_ms=parts["draft"],
        verify_ms=parts["verify"],
        accept_ms=parts["accept"],
        policy_ms=parts["policy"],
        other_ms=per_step("seconds") - prefill - sum(parts.values()),
        prefill_ms=prefill * steps / len(requests),
        nodes=sum(request["drafted"] for request in requests) / steps,
        trees=trees,
        identical=sum(request["identical"] for request in requests),
        ties=sum(not request["identical"] and request["tie_margin"] < TIE_MARGIN for request in requests),
        score=fmean(scored) if scored else None,
        scored=len(scored),
    )


def _pairs(runs: _Runs) -> list[tuple[str, str]]:
    """Which (arm, baseline) are compared."""
    arms = sorted({arm for _, arm in runs}, key=arm_place)
    pairs = [(arm, baseline) for baseline in _BASELINES if baseline in arms for arm in arms if arm != baseline]
    adaptive = [arm for arm in ADAPTIVE if arm in arms]
    return pairs + [(arm, other) for arm in adaptive for other in arms if other not in (arm, *_BASELINES)]


def _speedups(runs: _Runs, arm: str, baseline: str) -> list[Speedup]:
    """One comparison per suite in which both arms wrote the same prompts, and one over these suites."""
    rows = []
    resamples = []
    for suite in dict.fromkeys(suite for suite, _ in runs):
        ours, theirs = runs.get((suite, arm), {}), runs.get((suite, baseline), {})
        ours_seconds, their_seconds = paired_seconds(ours, theirs)
        if not len(ours_seconds):
            continue
        resamples.append(resampled_ratios(their_seconds, ours_seconds, f"speedup {suite} {arm} {baseline}"))
        rows.append(
            Speedup(
                suite=suite,
                suites=1,
                arm=arm,
                baseline=baseline,
                prompts=len(ours_seconds),
                fewest_prompts=len(ours_seconds),
                ratio=estimate(float(their_seconds.sum() / ours_seconds.sum()), resamples[-1]),
            )
        )
    return [*rows, _over_all(rows, resamples)] if rows else []


def _over_all(rows: Sequence[Speedup], resamples: Sequence[Floats | None]) -> Speedup:
    return Speedup(
        suite=ALL_SUITES,
        suites=len(rows),
        arm=rows[0].arm,
        baseline=rows[0].baseline,
        prompts=sum(row.prompts for row in rows),
        fewest_prompts=min(row.prompts for row in rows),
        ratio=mean_of_strata([row.ratio.value for row in rows], resamples),
    )


def _depth_acceptance(steps: pa.Table, suite: str, arm: str) -> list[DepthAcceptance]:
    table = steps.filter((pc.field("suite") == suite) & (pc.field("arm") == arm))
    reach, kept = table["depth"].to_numpy(), table["accepted"].to_numpy() - 1
    return [
        DepthAcceptance(
            suite=suite,
            arm=arm,
            depth=depth,
            steps=int((reach >= depth).sum()),
            rate=float((kept[reach >= depth] >= depth).mean()),
        )
        for depth in range(1, int(reach.max(initial=0)) + 1)
    ]
