"""Interim results of a running benchmark: a line per suite after 1, 3, 6, 12 prompts, and so on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import pyarrow as pa

from entmtp import methods
from entmtp.evaluation.analysis.by_prompt import Prompts, by_arm, paired_seconds, tokens_per_second
from entmtp.evaluation.run.units import Unit
from entmtp.evaluation.run.work_queue import SettledUnit
from entmtp.intervals import FEWEST_PROMPTS, paired_ratio, ratio
from entmtp.methods import AUTOREGRESSIVE

_COLUMNS = ["suite", "arm", "prompt_id", "new_tokens", "seconds"]


class InterimResults:
    """Settled units of this run, and the lines about them.

    Lines are few, however many prompts there are: each one costs a pass over all rows of its suite.
    """

    def __init__(self, waiting: Sequence[Unit]) -> None:
        """``waiting`` are the units that this run will run."""
        self._total: Counter[str] = Counter()
        for unit in waiting:
            self._total[unit.suite] += len(unit.prompts)
        self._settled: Counter[str] = Counter()
        self._requests: dict[str, list[pa.Table]] = {}

    def add(self, done: SettledUnit) -> str | None:
        """Add a settled unit; return the line about its suite if one is due."""
        suite = done.unit.suite
        before = self._settled[suite]
        self._settled[suite] += len(done.unit.prompts)
        self._requests.setdefault(suite, []).append(done.requests.select(_COLUMNS))
        due = any(before < mark <= self._settled[suite] for mark in _marks(self._total[suite]))
        return self._line(suite) if due else None

    def _line(self, suite: str) -> str | None:
        runs = {arm: prompts for (_, arm), prompts in by_arm(pa.concat_tables(self._requests[suite])).items()}
        if not runs:
            return None
        speeds = ", ".join(f"{arm} {tokens_per_second(prompts):.1f}" for arm, prompts in runs.items())
        line = f"{suite}, {self._settled[suite]} of {self._total[suite]} prompts, tokens/s: {speeds}"
        if self._settled[suite] < FEWEST_PROMPTS:
            return f"{line}; no speedups before {FEWEST_PROMPTS} prompts"
        return "; ".join([line, *_speedups(runs)])


def _marks(total: int) -> Iterator[int]:
    """Numbers of prompts after which a line is due: 1, 3, 6, 12, and so on, and all of them."""
    yield 1
    mark = FEWEST_PROMPTS
    while mark < total:
        yield mark
        mark *= 2
    yield total


def _speedups(runs: dict[str, Prompts]) -> Iterator[str]:
    """Speedups of adaptive arms over plain decoding, where there are enough prompts for an interval."""
    for arm in methods.adaptive():
        if arm not in runs or AUTOREGRESSIVE not in runs:
            continue
        ours, theirs = paired_seconds(runs[arm], runs[AUTOREGRESSIVE])
        if len(ours) and (found := paired_ratio(theirs, ours).estimate()).has_interval:
            yield f"{arm} against {AUTOREGRESSIVE} {ratio(found)}"
