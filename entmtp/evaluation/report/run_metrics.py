"""Metrics of a summary as flat names and values, for a tracking server."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from entmtp.evaluation.analysis.conclusions import caveats, conclusions
from entmtp.evaluation.analysis.score import metric
from entmtp.evaluation.analysis.summary import ALL_SUITES, ArmSummary, Summary
from entmtp.intervals import Estimate
from entmtp.methods import AUTOREGRESSIVE


def overall_metrics(summary: Summary) -> dict[str, float]:
    """Speedups over all suites, `<arm>/speedup_against_<baseline>`, with their intervals."""
    metrics: dict[str, float] = {}
    for row in summary.speedups:
        if row.suite == ALL_SUITES:
            metrics |= _with_interval(f"{row.arm}/speedup_against_{row.baseline}", row.ratio)
    return metrics


def arm_metrics(summary: Summary, row: ArmSummary) -> dict[str, float]:
    """All metrics of one arm on one suite; its score also by the score's own name."""
    numbers = {name: value for name, value in asdict(row).items() if isinstance(value, int | float)}
    metrics = numbers | {
        "tau": row.tau.value,
        "log_likelihood": row.log_likelihood.value,
        "identical_share": row.identical / row.requests,
    }
    if row.score is not None:
        metrics[score_name(row.suite)] = row.score
    metrics |= _with_interval("tau", row.tau) | _with_interval("log_likelihood", row.log_likelihood)
    if (against := summary.likelihood(row.suite, row.arm)) is not None:
        metrics |= _with_interval(f"log_likelihood_against_{AUTOREGRESSIVE}", against.difference)
    for depth in summary.depths:
        if (depth.suite, depth.arm) == (row.suite, row.arm):
            metrics[f"acceptance_depth_{depth.depth}"] = depth.rate
            if depth.conditional is not None:
                metrics[f"conditional_acceptance_depth_{depth.depth}"] = depth.conditional
    for speedup in summary.speedups:
        if (speedup.suite, speedup.arm) == (row.suite, row.arm):
            metrics |= _with_interval(f"speedup_against_{speedup.baseline}", speedup.ratio)
    return metrics


def score_name(suite: str) -> str:
    """Name of a suite's score that a tracking server accepts: 'pass_at_1' or 'exact_match'."""
    return (metric(suite) or "score").replace("@", "_at_").replace(" ", "_")


def _with_interval(name: str, estimate: Estimate) -> dict[str, float]:
    """The estimate and its bounds as three metrics, or nothing where it has no interval."""
    if estimate.low is None or estimate.high is None:
        return {}
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


def description(summary: Summary, provenance: Mapping[str, Any]) -> str:
    """The run's description in MLflow: conclusions, then caveats, as Markdown."""
    return "\n".join(
        f"- {line}" for line in conclusions(summary) + [f"**{line}**" for line in caveats(summary, provenance)]
    )
