"""Equal runs pass the gate, but for one pair in twenty at most."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from entmtp.evaluation.report.compare_runs import compare, regressions
from entmtp.evaluation.results.rows import RequestRow
from tests.helpers.finished_runs import run_of


def test_the_gate_fails_one_of_twenty_pairs_of_equal_runs_at_most() -> None:
    rng = np.random.default_rng(4)

    def drawn(row: RequestRow) -> RequestRow:
        return replace(row, seconds=float(np.exp(0.05 * rng.normal())))

    pairs = 200
    failed = sum(bool(regressions(compare([run_of("a", drawn), run_of("b", drawn)]), 1.0)) for _ in range(pairs))
    assert failed / pairs <= 0.05
