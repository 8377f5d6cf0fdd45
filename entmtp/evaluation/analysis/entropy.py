"""The relation between a step's entropy and its number of accepted tokens."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from entmtp import methods
from entmtp.evaluation.analysis.summary import EntropyBin, EntropyCorrelation
from entmtp.intervals import Floats, correlation, ratio_of_sums

Names = NDArray[np.str_]

_MOST_BINS = 8
_STEPS_PER_BIN = 10
_SIGNALS = ("entropy", "entropy_ema")


def entropy_relation(
    steps: pa.Table, runs: Sequence[tuple[str, str]]
) -> tuple[list[EntropyBin], list[EntropyCorrelation]]:
    """Accepted tokens by entropy bin, and their correlation with entropy, per suite.

    Args:
        steps: step rows.
        runs: the existing (suite, arm) pairs; of each suite the first of the static arms is used.

    Returns:
        Bins of about equal step counts, and one correlation per signal. Intervals are over prompts. Only the first
        repetition counts, as greedy repetitions are copies.
    """
    bins: list[EntropyBin] = []
    correlations: list[EntropyCorrelation] = []
    for suite in dict.fromkeys(suite for suite, _ in runs):
        arm = next((arm for arm in _arms() if (suite, arm) in runs), None)
        table = _first_repetition(steps, suite, arm)
        if arm is None or table.num_rows == 0:
            continue
        accepted = table["accepted"].to_numpy().astype(np.float64)
        prompts = np.array(table["prompt_id"].to_pylist())
        bins += _bins(suite, arm, table["entropy"].to_numpy(), accepted, prompts)
        correlations += [
            _correlation(suite, arm, signal, table[signal].to_numpy(), accepted, prompts) for signal in _SIGNALS
        ]
    return bins, correlations


def _arms() -> list[str]:
    """Arms in order of preference. Those with a constant tree come first: adaptive choices confound the relation."""
    static = methods.names(lambda method: method.role == "method" and method.heads is not None)
    return [*sorted(static, key=lambda arm: methods.FAMILIES.index(methods.heads_of(arm))), *methods.adaptive()]


def _first_repetition(steps: pa.Table, suite: str, arm: str | None) -> pa.Table:
    first = pc.min(steps["repetition"])
    wanted = (pc.field("suite") == suite) & (pc.field("arm") == arm) & (pc.field("repetition") == first)
    return steps.filter(wanted & pc.is_finite(pc.field("entropy")) & pc.is_finite(pc.field("entropy_ema")))


def _bins(suite: str, arm: str, entropy: Floats, accepted: Floats, prompts: Names) -> list[EntropyBin]:
    count = int(np.clip(len(entropy) // _STEPS_PER_BIN, 1, _MOST_BINS))
    edges = np.unique(np.quantile(entropy, np.linspace(0, 1, count + 1)))
    bin_of_step = np.clip(np.searchsorted(edges, entropy, side="right") - 1, 0, max(len(edges) - 2, 0))
    rows = []
    for index in np.unique(bin_of_step):
        here = bin_of_step == index
        tokens = _by_prompt(accepted[here], prompts[here])
        rows.append(
            EntropyBin(
                suite=suite,
                arm=arm,
                entropy_from=float(entropy[here].min()),
                entropy_to=float(entropy[here].max()),
                entropy_mean=float(entropy[here].mean()),
                steps=int(here.sum()),
                prompts=len(tokens),
                accepted=ratio_of_sums(
                    np.array([part.sum() for part in tokens]),
                    np.array([len(part) for part in tokens], dtype=np.float64),
                ),
            )
        )
    return rows


def _correlation(suite: str, arm: str, signal: str, x: Floats, y: Floats, prompts: Names) -> EntropyCorrelation:
    return EntropyCorrelation(
        suite=suite,
        arm=arm,
        signal=signal,
        steps=len(x),
        prompts=len(np.unique(prompts)),
        correlation=correlation(_by_prompt(x, prompts), _by_prompt(y, prompts)),
    )


def _by_prompt(values: Floats, prompts: Names) -> list[Floats]:
    """Each prompt's values, in the order of the prompts' names."""
    return [values[prompts == prompt] for prompt in np.unique(prompts)]
