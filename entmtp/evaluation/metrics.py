"""From rows to numbers: what each arm did on each suite, and how arms compare on the same prompts."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean, median
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from entmtp.evaluation.entropy import entropy_relation
from entmtp.evaluation.intervals import Floats, estimate, mean_of_strata, ratio_of_sums, resampled_ratios
from entmtp.evaluation.shares import entropy_quantiles, tree_shares
from entmtp.evaluation.summary import (
    ADAPTIVE,
    ALL_SUITES,
    AUTOREGRESSIVE,
    ENTMTP,
    ORACLE,
    ArmSummary,
    DepthAcceptance,
    Speedup,
    Summary,
)

TIE_MARGIN = 1e-4  # top-2 logits closer than this are a tie: either token is the model's own greedy choice

_SUITE_ORDER = ("humaneval", "gsm8k", "sharegpt", "litbench")
_ARM_ORDER = (
    *(AUTOREGRESSIVE, "medusa", "medusa-best", "hydra", "hydra-best", "native", "native-best"),
    *(ENTMTP, "entmtp-goodput"),
    *("entmtp-dynamic", "entmtp-transfer", "entmtp-mixed"),
    *("always-big", "random", ORACLE),
)
_BASELINES = (AUTOREGRESSIVE, "medusa", "hydra")  # every arm is compared with these, adaptive ones with every arm
_HEAVY = ("text", "token_ids")

_Request = dict[str, Any]
_Runs = Mapping[tuple[str, str], Mapping[str, Sequence[_Request]]]  # (suite, arm) -> prompt -> its repetitions


def summarise(requests: pa.Table, steps: pa.Table) -> Summary:
    """Summarise benchmark rows (`rows.read_parts`).

    Tokens per second and speedups take the median over repetitions of each prompt first. Intervals are 95% bootstrap
    intervals over prompts; those over all suites resample each suite by itself and average the suites geometrically.
    """
    runs = _group(requests)
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


def _group(requests: pa.Table) -> _Runs:
    """Requests by suite and arm (in the order tables show them), then by prompt."""
    grouped: dict[tuple[str, str], dict[str, list[_Request]]] = defaultdict(lambda: defaultdict(list))
    for request in requests.drop_columns(_HEAVY).to_pylist():
        grouped[request["suite"], request["arm"]][request["prompt_id"]].append(request)
    order = sorted(grouped, key=lambda key: (_place(key[0], _SUITE_ORDER), _place(key[1], _ARM_ORDER)))
    return {key: grouped[key] for key in order}


def _place(name: str, order: Sequence[str]) -> tuple[int, str]:
    return (order.index(name) if name in order else len(order), name)


def _tokens(repetitions: Sequence[_Request]) -> float:
    return median(request["new_tokens"] for request in repetitions)


def _seconds_per_token(repetitions: Sequence[_Request]) -> float:
    # A request that stops at once has cost what one token costs.
    return median(request["seconds"] / max(1, request["new_tokens"]) for request in repetitions)


def _different_trees(steps: pa.Table) -> dict[tuple[str, str], int]:
    """How many topologies the steps of each (suite, arm) used."""
    counted = steps.group_by(["suite", "arm"]).aggregate([("tree", "count_distinct")]).to_pylist()
    return {(row["suite"], row["arm"]): row["tree_count_distinct"] for row in counted}


def _arm_summary(suite: str, arm: str, prompts: Mapping[str, Sequence[_Request]], trees: int) -> ArmSummary:
    requests = [request for repetitions in prompts.values() for request in repetitions]
    steps = max(1, sum(request["steps"] for request in requests))

    def per_step(seconds: str) -> float:
        return 1000 * sum(request[seconds] for request in requests) / steps

    parts = {name: per_step(f"{name}_seconds") for name in ("draft", "verify", "accept", "policy")}
    prefill = per_step("prefill_seconds")
    tokens = [_tokens(repetitions) for repetitions in prompts.values()]
    seconds = [_tokens(repetitions) * _seconds_per_token(repetitions) for repetitions in prompts.values()]
    scores = [score for score in map(_score, prompts.values()) if score is not None]
    return ArmSummary(
        suite=suite,
        source="+".join(sorted({request["source"] for request in requests})),
        arm=arm,
        prompts=len(prompts),
        requests=len(requests),
        new_tokens=round(sum(tokens)),
        tokens_per_second=sum(tokens) / sum(seconds),
        tau=ratio_of_sums(_totals(prompts, "new_tokens"), _totals(prompts, "steps"), f"tau {suite} {arm}"),
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
        score=fmean(scores) if scores else None,
        scored=len(scores),
    )


def _totals(prompts: Mapping[str, Sequence[_Request]], field: str) -> Floats:
    """`[prompts]`: the sum of a field over each prompt's repetitions."""
    return np.array([sum(request[field] for request in repetitions) for repetitions in prompts.values()], np.float64)


def _score(repetitions: Sequence[_Request]) -> float | None:
    scores = [request["score"] for request in repetitions if request["score"] is not None]
    return fmean(scores) if scores else None


def _pairs(runs: _Runs) -> list[tuple[str, str]]:
    """Which (arm, baseline) are compared."""
    arms = sorted({arm for _, arm in runs}, key=lambda arm: _place(arm, _ARM_ORDER))
    pairs = [(arm, baseline) for baseline in _BASELINES if baseline in arms for arm in arms if arm != baseline]
    adaptive = [arm for arm in ADAPTIVE if arm in arms]
    return pairs + [(arm, other) for arm in adaptive for other in arms if other not in (arm, *_BASELINES)]


def _speedups(runs: _Runs, arm: str, baseline: str) -> list[Speedup]:
    """One comparison per suite in which both arms wrote the same prompts, and one over these suites."""
    rows = []
    resamples = []
    for suite in dict.fromkeys(suite for suite, _ in runs):
        ours, theirs = runs.get((suite, arm), {}), runs.get((suite, baseline), {})
        shared = sorted(set(ours) & set(theirs))
        if not shared:
            continue
        # Both times are for the baseline's tokens, so that a difference after a tie does not change the work compared.
        tokens = np.array([_tokens(theirs[prompt]) for prompt in shared])
        ours_seconds = tokens * np.array([_seconds_per_token(ours[prompt]) for prompt in shared])
        their_seconds = tokens * np.array([_seconds_per_token(theirs[prompt]) for prompt in shared])
        resamples.append(resampled_ratios(their_seconds, ours_seconds, f"speedup {suite} {arm} {baseline}"))
        rows.append(
            Speedup(
                suite=suite,
                suites=1,
                arm=arm,
                baseline=baseline,
                prompts=len(shared),
                fewest_prompts=len(shared),
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
