"""Equal runs pass the gate, but for one pair in twenty at most."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from entmtp.evaluation.report.compare_runs import compare, regressions
from entmtp.evaluation.report.load_run import LoadedRun
from entmtp.evaluation.results.rows import REQUEST_SCHEMA, RequestRow, as_table
from tests.helpers.synthetic_rows import make_rows

FACTS = {"settings.max_new_tokens": "64", "settings.repetitions": "3", "hardware": "one"}
ARMS, SUITES = ("autoregressive", "hydra", "entmtp"), ("gsm8k", "litbench")
Change = Callable[[RequestRow], RequestRow | None]


def run(name: str, change: Change = lambda row: row, provenance: Mapping[str, str] = FACTS) -> LoadedRun:
    """A run whose rows are those of all others, but for `change` (none drops a row)."""
    requests, _ = make_rows(arms=ARMS, suites=SUITES, prompts=6)
    changed = [new for row in requests if (new := change(row)) is not None]
    return LoadedRun(name, provenance, as_table(changed, REQUEST_SCHEMA))


def test_the_gate_fails_one_of_twenty_pairs_of_equal_runs_at_most() -> None:
    rng = np.random.default_rng(4)

    def drawn(row: RequestRow) -> RequestRow:
        return replace(row, seconds=float(np.exp(0.05 * rng.normal())))

    pairs = 200
    failed = sum(bool(regressions(compare([run("a", drawn), run("b", drawn)]), 1.0)) for _ in range(pairs))
    assert failed / pairs <= 0.05
