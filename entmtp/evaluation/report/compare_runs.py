"""Comparison of benchmark runs, prompt by prompt: of several machines, or of several versions of the code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from entmtp.errors import EntMTPError
from entmtp.evaluation.analysis.by_prompt import (
    Prompts,
    accepted_per_step,
    by_arm,
    paired_seconds,
    scores,
    tokens_per_second,
)
from entmtp.evaluation.analysis.summary import ALL_SUITES, PairedRatio
from entmtp.evaluation.report.comparable import Key, PromptsByRun, check_comparable, differences, notes, omissions
from entmtp.evaluation.report.load_run import LoadedRun
from entmtp.intervals import FEWEST_PROMPTS, Estimate, LogMean, mean_of_suites, paired_ratio


@dataclass(frozen=True, slots=True, kw_only=True)
class RunArm:
    """Results of a run's arm on the prompts that are compared. tau counts the root."""

    suite: str
    arm: str
    run: str
    prompts: int
    tokens_per_second: float
    tau: Estimate
    score: float | None
    scored: int  # prompts with a score


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRatio(PairedRatio):
    """Time of an arm in `baseline` over its time in `run`, for the baseline's tokens of the same prompts."""

    suite: str  # or ALL_SUITES
    arm: str
    run: str
    baseline: str
    prompts: int
    differing: int  # prompts for which the two runs wrote different tokens
    ratio: Estimate
    log_error: float | None  # standard error of the ratio's logarithm
    freedom: float  # degrees of freedom of that error


@dataclass(frozen=True)
class RunComparison:
    """A comparison of runs.

    Attributes:
        runs: their names; the first is the baseline of the others.
        differences: provenance that differs between the runs: by name, its values in the order of the runs.
        notes: warnings that a reader needs in order to judge the numbers.
    """

    runs: list[str]
    arms: list[RunArm]
    ratios: list[RunRatio]
    differences: Mapping[str, list[str]]
    notes: list[str]


def compare(runs: Sequence[LoadedRun]) -> RunComparison:
    """Compare every run with the first, on the prompts that all of them have.

    Raises:
        EntMTPError: there are not two runs, or they are not comparable.
    """
    names = [run.name for run in runs]
    if len(runs) < 2:
        raise EntMTPError(f"run: {len(runs)} given; a comparison needs two or more")
    if double := next((name for name in names if names.count(name) > 1), None):
        raise EntMTPError(f"run: two are called '{double}'; give each its own name, NAME=RUN")
    by_run = {run.name: by_arm(run.requests.drop_columns("text")) for run in runs}
    check_comparable(runs, by_run)
    paired = _on_shared_prompts(by_run)
    if not paired:
        raise EntMTPError(f"runs {', '.join(names)} have no suite, arm and prompt in common; run the same benchmark")
    return RunComparison(
        runs=names,
        arms=[_arm(key, name, prompts) for key, by_run in paired.items() for name, prompts in by_run.items()],
        ratios=_ratios(names, paired),
        differences=differences(runs),
        notes=[*notes(runs), *omissions(by_run)],
    )


def regressions(comparison: RunComparison, least: float) -> list[str]:
    """A line for each ratio whose whole interval is below `least`. The intervals hold all together with 95%.

    So two equally fast runs are reported in at most 5% of cases, however many ratios are judged.

    Raises:
        EntMTPError: `least` is no bound for a ratio, or no ratio has an interval to be judged by.
    """
    if not 0 < least < float("inf"):
        raise EntMTPError(f"fail-below: {least} is not a ratio of speeds; give one such as 0.97")
    judged = [row for row in comparison.ratios if row.ratio.has_interval]
    if not judged:
        raise EntMTPError(f"fail-below: nothing can be judged without intervals; they need {FEWEST_PROMPTS} prompts")
    found = [(row, row.adjusted_for(len(judged))) for row in judged]
    return [
        f"{row.arm} on {row.suite}: {row.run} is {ratio.value:.3f}x [{ratio.low:.3f}, {ratio.high:.3f}]"
        f" as fast as {row.baseline}, wholly below {least:g} ({row.prompts} prompts, one of {len(judged)} comparisons)"
        for row, ratio in found
        if ratio.high is not None and ratio.high < least
    ]


def _on_shared_prompts(runs: PromptsByRun) -> dict[Key, dict[str, Prompts]]:
    """Prompts by run, of each suite and arm of the first run, cut to the prompts that all these runs have."""
    first = next(iter(runs.values()))
    paired: dict[Key, dict[str, Prompts]] = {}
    for key in first:
        by_run = {name: arms[key] for name, arms in runs.items() if key in arms}
        shared = sorted(set.intersection(*(set(prompts) for prompts in by_run.values())))
        if len(by_run) > 1 and shared:
            paired[key] = {name: {prompt: prompts[prompt] for prompt in shared} for name, prompts in by_run.items()}
    return paired


def _arm(key: Key, run: str, prompts: Prompts) -> RunArm:
    suite, arm = key
    scored = scores(prompts)
    return RunArm(
        suite=suite,
        arm=arm,
        run=run,
        prompts=len(prompts),
        tokens_per_second=tokens_per_second(prompts),
        tau=accepted_per_step(prompts),
        score=fmean(scored) if scored else None,
        scored=len(scored),
    )


def _ratios(names: Sequence[str], paired: Mapping[Key, Mapping[str, Prompts]]) -> list[RunRatio]:
    """Ratios of each later run and arm: a row per suite and one over these suites."""
    rows = []
    for name in names[1:]:
        for arm in dict.fromkeys(arm for _, arm in paired):
            suites = [suite for suite, its_arm in paired if its_arm == arm and name in paired[suite, arm]]
            if suites:
                rows += _ratios_of_arm(arm, name, names[0], {suite: paired[suite, arm] for suite in suites})
    return rows


def _ratios_of_arm(arm: str, run: str, baseline: str, by_suite: Mapping[str, Mapping[str, Prompts]]) -> list[RunRatio]:
    rows, ratios = [], []
    for suite, by_run in by_suite.items():
        ours, theirs = by_run[run], by_run[baseline]
        our_seconds, their_seconds = paired_seconds(ours, theirs)
        ratios.append(paired_ratio(their_seconds, our_seconds))
        differing = sum(_texts(ours[prompt]) != _texts(theirs[prompt]) for prompt in ours)
        rows.append(_ratio(ratios[-1], suite, arm, (run, baseline), len(ours), differing))
    prompts, differing = (sum(getattr(row, field) for row in rows) for field in ("prompts", "differing"))
    return [*rows, _ratio(mean_of_suites(ratios), ALL_SUITES, arm, (run, baseline), prompts, differing)]


def _ratio(log_ratio: LogMean, suite: str, arm: str, runs: tuple[str, str], prompts: int, differing: int) -> RunRatio:
    """The row of ``runs``: the later run and the baseline."""
    return RunRatio(
        suite=suite,
        arm=arm,
        run=runs[0],
        baseline=runs[1],
        prompts=prompts,
        differing=differing,
        ratio=log_ratio.estimate(),
        log_error=log_ratio.error,
        freedom=log_ratio.freedom,
    )


def _texts(repetitions: Sequence[Mapping[str, list[int]]]) -> set[tuple[int, ...]]:
    """The different texts of a prompt: one where decoding is greedy and every sum is computed in the same order."""
    return {tuple(request["token_ids"]) for request in repetitions}
