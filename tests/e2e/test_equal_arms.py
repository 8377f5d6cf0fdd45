"""Equal arms are found equal, but for one run in twenty at most."""

from dataclasses import replace

import numpy as np
import pytest

from entmtp.evaluation.analysis.conclusions import conclusions
from tests.helpers.synthetic_rows import make_rows
from tests.helpers.synthetic_summaries import summary_of


@pytest.mark.parametrize("runs", [200, pytest.param(1000, marks=pytest.mark.slow)])
def test_equal_arms_are_distinguished_in_one_of_twenty_runs_at_most(runs: int) -> None:
    """Benchmarks of three arms that take the same time: four suites of six prompts, one comparison each."""
    rng = np.random.default_rng(3)
    requests, steps = make_rows(arms=("autoregressive", "hydra", "entmtp"), prompts=6, repetitions=1)
    steps = steps[:1]
    wrong = claims = 0
    for _ in range(runs):
        drawn = [replace(row, seconds=float(np.exp(0.2 * rng.gamma(4)))) for row in requests]
        claimed = [line for line in conclusions(summary_of(drawn, steps)) if "suites," in line]
        assert len(claimed) == 3
        claims += len(claimed)
        wrong += sum("inconclusive" not in line for line in claimed)
    assert wrong / claims <= 0.05
    assert wrong  # or intervals would be wider than they must be
