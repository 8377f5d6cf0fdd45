"""Estimates with bootstrap intervals over prompts.

The prompt is the unit that is resampled: steps and repetitions of one prompt resemble each other, prompts do not.
"""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

FEWEST_PROMPTS = 3  # with fewer, an interval would be a decoration
RESAMPLES = 10_000
CONFIDENCE = 0.95
_DRAWS_AT_ONCE = 2_000_000  # bounds the memory of one bootstrap to some tens of MB


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its 95% interval; `low` and `high` are none where there are too few prompts for one."""

    value: float
    low: float | None
    high: float | None

    @property
    def has_interval(self) -> bool:
        return self.low is not None and self.high is not None


def estimate(value: float, resampled: Floats | None) -> Estimate:
    """`value` with the middle 95% of its resamples, or without an interval where there are none."""
    if resampled is None:
        return Estimate(value, None, None)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.nanquantile(resampled, [tail, 1 - tail])
    return Estimate(value, float(low), float(high))


def ratio_of_sums(numerators: Floats, denominators: Floats, label: str) -> Estimate:
    """sum(numerators) / sum(denominators), resampling prompts in pairs.

    Args:
        numerators, denominators: `[prompts]`, one value per prompt.
        label: names the estimate; it seeds the resampling, so that the same rows always give the same interval.
    """
    value = float(numerators.sum() / denominators.sum())
    return estimate(value, resampled_ratios(numerators, denominators, label))


def resampled_ratios(numerators: Floats, denominators: Floats, label: str) -> Floats | None:
    """The ratio of sums in each of the resamples, `[RESAMPLES]`, or none where there are too few prompts."""
    if len(numerators) < FEWEST_PROMPTS:
        return None

    def ratio(numerator: Floats, denominator: Floats, axis: int) -> Floats:
        return np.asarray(numerator.sum(axis=axis) / denominator.sum(axis=axis))

    return _bootstrap((numerators, denominators), ratio, label)


def mean_of_strata(values: Sequence[float], resamples: Sequence[Floats | None]) -> Estimate:
    """Geometric mean over strata (suites), each resampled by itself.

    Args:
        values: one ratio per stratum.
        resamples: `[RESAMPLES]` per stratum, or none where the stratum has too few prompts: then no interval at all.
    """
    value = float(np.exp(np.mean(np.log(values))))
    known = [ratios for ratios in resamples if ratios is not None]
    if len(known) < len(resamples):
        return estimate(value, None)
    return estimate(value, np.exp(np.mean(np.log(np.stack(known)), axis=0)))


def correlation(x: Sequence[Floats], y: Sequence[Floats], label: str) -> Estimate:
    """Pearson's correlation over all points, resampling whole prompts.

    Args:
        x, y: per prompt, its points `[points of that prompt]`.
        label: seeds the resampling.

    Returns:
        The correlation; nan where x or y does not vary.
    """
    moments = tuple(
        np.array([function(a, b) for a, b in zip(x, y, strict=True)], dtype=np.float64)
        for function in (
            lambda a, b: len(a),
            lambda a, b: a.sum(),
            lambda a, b: b.sum(),
            lambda a, b: (a * a).sum(),
            lambda a, b: (b * b).sum(),
            lambda a, b: (a * b).sum(),
        )
    )
    value = float(_pearson(*moments, axis=0))
    if len(x) < FEWEST_PROMPTS or np.isnan(value):
        return estimate(value, None)
    return estimate(value, _bootstrap(moments, _pearson, label))


def _pearson(*moments: Floats, axis: int) -> Floats:
    n, sx, sy, sxx, syy, sxy = (moment.sum(axis=axis) for moment in moments)
    spread = (n * sxx - sx**2) * (n * syy - sy**2)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(spread > 0, (n * sxy - sx * sy) / np.sqrt(spread), np.nan)


def _bootstrap(samples: tuple[Floats, ...], statistic: Callable[..., Any], label: str) -> Floats:
    from scipy import stats  # which takes most of a second: those who only generate text must not wait for it

    result = stats.bootstrap(
        samples,
        statistic,
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=max(1, _DRAWS_AT_ONCE // len(samples[0])),
        method="percentile",
        rng=np.random.default_rng(zlib.crc32(label.encode())),
    )
    return np.asarray(result.bootstrap_distribution)
