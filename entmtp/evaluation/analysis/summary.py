"""The summary of a benchmark: the numbers that tables, plots and conclusions are made from."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Self

import pyarrow as pa

from entmtp import methods
from entmtp.evaluation.results.flat_tables import flat_table
from entmtp.intervals import Estimate, LogMean
from entmtp.methods import AUTOREGRESSIVE

ALL_SUITES = "all suites"
SAMPLE = "sample"
BASELINES = (AUTOREGRESSIVE, "medusa", "hydra")
"""Arms that every arm is compared with; adaptive arms are compared with every arm."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmSummary:
    """One arm on one suite. `*_ms` are mean milliseconds per step; tau counts the root."""

    suite: str
    source: str
    arm: str
    prompts: int
    requests: int
    new_tokens: int  # of one repetition of every prompt
    tokens_per_second: float
    tau: Estimate
    draft_ms: float
    verify_ms: float
    accept_ms: float
    policy_ms: float
    other_ms: float  # rest of the request's time after the prefill
    prefill_ms: float  # per request
    nodes: float  # drafted per step
    trees: int  # different topologies that its steps used
    identical: int  # requests with exactly the autoregressive tokens
    captures: int  # parts of its timed steps that were captured as CUDA graphs
    unsettled_steps: int  # timed steps with a part that was captured or ran for the first time
    ties: int  # differing requests whose first difference is a tie of the top two logits
    score: float | None
    scored: int  # prompts with a score
    log_likelihood: Estimate  # of the texts under the model, mean over prompts, nats per token


class PairedRatio:
    """A row with a ratio of paired times, to be judged alone or as one of many."""

    __slots__ = ()
    ratio: Estimate
    log_error: float | None  # standard error of the ratio's logarithm
    freedom: float  # degrees of freedom of that error

    def adjusted_for(self, comparisons: int) -> Estimate:
        """The ratio, its interval adjusted so that all `comparisons` hold together (Bonferroni)."""
        return LogMean(math.log(self.ratio.value), self.log_error, self.freedom).estimate(comparisons)

    @property
    def verdict(self) -> str:
        return verdict(self.ratio)


@dataclass(frozen=True, slots=True, kw_only=True)
class Speedup(PairedRatio):
    """Time of `baseline` over time of `arm`, for the same tokens of the same prompts."""

    suite: str  # or ALL_SUITES
    suites: int
    arm: str
    baseline: str
    prompts: int  # pairs
    fewest_prompts: int  # pairs of the suite that has fewest
    ratio: Estimate
    log_error: float | None  # standard error of the ratio's logarithm
    freedom: float  # degrees of freedom of that error

    @classmethod
    def of(cls, log_ratio: LogMean, *, suite: str, arm: str, baseline: str, prompts: Sequence[int]) -> Self:
        """Make the row from the ratio's logarithm and the number of `prompts` of each suite."""
        return cls(
            suite=suite,
            suites=len(prompts),
            arm=arm,
            baseline=baseline,
            prompts=sum(prompts),
            fewest_prompts=min(prompts),
            ratio=log_ratio.estimate(),
            log_error=log_ratio.error,
            freedom=log_ratio.freedom,
        )

    @property
    def reversed(self) -> Self:
        """The same comparison with the two arms exchanged."""
        ratio = LogMean(-math.log(self.ratio.value), self.log_error, self.freedom).estimate()
        return replace(self, arm=self.baseline, baseline=self.arm, ratio=ratio)


@dataclass(frozen=True, slots=True, kw_only=True)
class LikelihoodDifference:
    """Log-likelihood of `arm`'s texts minus that of plain decoding's, nats per token."""

    suite: str  # or ALL_SUITES
    suites: int
    arm: str
    prompts: int  # pairs
    difference: Estimate
    error: float | None  # standard error of the difference
    freedom: float  # degrees of freedom of that error

    @classmethod
    def of(cls, mean: LogMean, *, suite: str, arm: str, prompts: Sequence[int]) -> Self:
        """Make the row from the mean difference and the number of `prompts` of each suite."""
        return cls(
            suite=suite,
            suites=len(prompts),
            arm=arm,
            prompts=sum(prompts),
            difference=mean.log_estimate(),
            error=mean.error,
            freedom=mean.freedom,
        )

    def adjusted_for(self, comparisons: int) -> Estimate:
        """The difference, its interval adjusted so that all `comparisons` hold together (Bonferroni)."""
        return LogMean(self.difference.value, self.error, self.freedom).log_estimate(comparisons)


def verdict(ratio: Estimate) -> str:
    """'faster', 'slower', 'inconclusive' (the interval holds 1), or 'no claim' without an interval."""
    if ratio.low is None or ratio.high is None:
        return "no claim"
    if ratio.low > 1:
        return "faster"
    return "slower" if ratio.high < 1 else "inconclusive"


@dataclass(frozen=True, slots=True, kw_only=True)
class DepthAcceptance:
    """Acceptance at `depth` (the root is depth 0), over the steps whose tree reaches it."""

    suite: str
    arm: str
    depth: int
    steps: int
    rate: float  # share of all these steps that accepted a token of that depth
    conditional: float | None  # the same, over steps that accepted all depths before; none where there are none


@dataclass(frozen=True, slots=True, kw_only=True)
class EntropyBin:
    """Mean accepted tokens (root included) of the steps whose entropy, in nats, falls into one bin."""

    suite: str
    arm: str
    entropy_from: float
    entropy_to: float
    entropy_mean: float
    steps: int
    prompts: int
    accepted: Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class EntropyCorrelation:
    """Pearson's correlation between a signal (`entropy` or `entropy_ema`) and the accepted tokens of its step."""

    suite: str
    arm: str
    signal: str
    steps: int
    prompts: int
    correlation: Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeShare:
    """Share (0 to 1) of an arm's steps on a suite by shape of their tree.

    The rare shapes of a size share a row. They have `nodes_from` to `nodes_to` nodes, the root not counted.
    """

    suite: str
    arm: str
    nodes_from: int
    nodes_to: int | None  # none: without an end
    depth: int | None  # none: of several shapes
    width: int | None  # most nodes of a level
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeUse:
    """Share (0 to 1) of an arm's steps on a suite that used one of its most frequent topologies."""

    suite: str
    arm: str
    tree: str
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EntropyQuantile:
    """Distribution of entropy, in nats, over all positions of a suite's texts under plain decoding."""

    suite: str
    steps: int
    mean: float
    p10: float
    p25: float
    p50: float
    p75: float
    p90: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Rows that tables, plots and conclusions are made from."""

    arms: list[ArmSummary]
    speedups: list[Speedup]
    likelihoods: list[LikelihoodDifference]
    depths: list[DepthAcceptance]
    entropy_bins: list[EntropyBin]
    entropy_correlations: list[EntropyCorrelation]
    tree_shares: list[TreeShare]
    tree_uses: list[TreeUse]
    entropy_quantiles: list[EntropyQuantile]

    @property
    def suites(self) -> list[str]:
        return list(dict.fromkeys(row.suite for row in self.arms))

    @property
    def sources(self) -> dict[str, str]:
        """Source of each suite's prompts."""
        return {row.suite: row.source for row in self.arms}

    def speedup(self, suite: str, arm: str, baseline: str) -> Speedup | None:
        """The comparison, or none where the two arms share no prompt."""
        wanted = (suite, arm, baseline)
        return next((row for row in self.speedups if (row.suite, row.arm, row.baseline) == wanted), None)

    def likelihood(self, suite: str, arm: str) -> LikelihoodDifference | None:
        """The difference to plain decoding's texts; none where the two share no prompt."""
        return next((row for row in self.likelihoods if (row.suite, row.arm) == (suite, arm)), None)

    @property
    def best_adaptive(self) -> str | None:
        """The adaptive arm with the largest speedup over plain decoding on all suites together."""
        rows = [row for arm in methods.adaptive() if (row := self.speedup(ALL_SUITES, arm, AUTOREGRESSIVE)) is not None]
        return max(rows, key=lambda row: row.ratio.value).arm if rows else None

    def label(self, suite: str) -> str:
        """The suite's name in tables and plots, marked 'sample' where its prompts are a sample."""
        sources = self.sources
        if suite == ALL_SUITES:
            samples = sum(SAMPLE in source for source in sources.values())
            return f"{suite} ({samples} of {len(sources)} sample)" if samples else suite
        return f"{suite} (sample)" if SAMPLE in sources[suite] else suite


def tables(summary: Summary) -> dict[str, pa.Table]:
    """The summary as flat tables by name. An estimate becomes three columns, the last two `_low` and `_high`."""
    return {
        "arms": flat_table([asdict(row) for row in summary.arms]),
        "speedups": flat_table([asdict(row) | {"verdict": row.verdict} for row in summary.speedups]),
        "likelihoods": flat_table([asdict(row) for row in summary.likelihoods]),
        "acceptance": flat_table([asdict(row) for row in summary.depths]),
        "entropy": flat_table([asdict(row) for row in summary.entropy_bins]),
        "correlations": flat_table([asdict(row) for row in summary.entropy_correlations]),
        "tree_shares": flat_table([asdict(row) for row in summary.tree_shares]),
        "tree_uses": flat_table([asdict(row) for row in summary.tree_uses]),
        "entropy_quantiles": flat_table([asdict(row) for row in summary.entropy_quantiles]),
    }
