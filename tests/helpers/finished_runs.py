"""Finished runs that are equal but for a change."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache

from entmtp.evaluation.report.load_run import LoadedRun
from entmtp.evaluation.results.rows import REQUEST_SCHEMA, RequestRow, as_table
from tests.helpers.synthetic_rows import make_rows

FACTS = {"settings.max_new_tokens": "64", "settings.repetitions": "3", "hardware": "one"}
ARMS, SUITES = ("autoregressive", "hydra", "entmtp"), ("gsm8k", "litbench")
Change = Callable[[RequestRow], RequestRow | None]


def run_of(name: str, change: Change = lambda row: row, provenance: Mapping[str, str] = FACTS) -> LoadedRun:
    """A run whose rows are those of all others, but for `change` (none drops a row)."""
    changed = [new for row in _rows() if (new := change(row)) is not None]
    return LoadedRun(name, provenance, as_table(changed, REQUEST_SCHEMA))


@cache
def _rows() -> Sequence[RequestRow]:
    return tuple(make_rows(arms=ARMS, suites=SUITES, prompts=6)[0])
