"""A work queue: hands units to free workers, collects their rows, and sets failing prompts aside. It needs no cluster.

A worker that dies does not report which of its unit's prompts killed it. So the rest of that unit is cut into single
prompts. A prompt that fails :data:`TRIES` times, by an error or by a death, is set aside.
"""

from __future__ import annotations

import textwrap
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from entmtp.errors import EntMTPError
from entmtp.evaluation.results.rows import REQUEST_SCHEMA, STEP_SCHEMA
from entmtp.evaluation.run.units import Unit

TRIES = 3
FUTILE = 5
"""Prompts set aside, with none done, after which the run ends: the prompts are not the cause."""

PEAKS = ("peak_memory_mib", "peak_device_memory_mib")
"""Metadata keys of a worker's peak memory and of its GPU's."""

_LONGEST_REASON = 160  # characters


@dataclass(frozen=True)
class UnitOutcome:
    """Rows and failures of a unit, or of some of its prompts, from one worker.

    Attributes:
        requests, steps: rows, as tables: a driver of many workers has no time to unpack them one by one.
        failures: reason by prompt id, for each prompt that raised an error.
        busy_seconds: that the worker spent on it.
        metadata: of the part: the worker's hardware, peak memory in MiB (its own and its GPU's), step costs, seconds
            of warm-up, and the messages before each prompt with the model's answers.
    """

    requests: pa.Table
    steps: pa.Table
    failures: dict[str, str]
    busy_seconds: float
    metadata: dict[str, Any]


@dataclass(frozen=True)
class SetAside:
    """A prompt that failed in every try and is in no result."""

    suite: str
    prompt_id: str
    tries: int
    reason: str


@dataclass
class SettledUnit:
    """A unit whose every prompt is done or set aside."""

    unit: Unit
    requests: pa.Table = field(default_factory=REQUEST_SCHEMA.empty_table)
    steps: pa.Table = field(default_factory=STEP_SCHEMA.empty_table)
    set_aside: list[SetAside] = field(default_factory=list)
    busy_seconds: float = 0.0
    metadata: dict[str, Any] = field(default_factory=dict)

    def add(self, outcome: UnitOutcome) -> None:
        """Add one worker's rows of some of the unit's prompts."""
        self.requests = pa.concat_tables([self.requests, outcome.requests])
        self.steps = pa.concat_tables([self.steps, outcome.steps])
        self.busy_seconds += outcome.busy_seconds
        self.metadata = _merge_metadata(self.metadata, outcome.metadata)


class WorkQueue:
    """Units that are not settled yet, handed out as tasks.

    A task is a :class:`Unit` with all prompts of its unit or some of them. After :meth:`next`, the caller reports the
    result with :meth:`returned` or :meth:`lost`. Both return the unit if it is now settled.
    """

    def __init__(self, units: Iterable[Unit], tries: int = TRIES) -> None:
        self._tries = tries
        self._queue = deque(units)
        self._settling = {unit.key: SettledUnit(unit) for unit in self._queue}
        self._open = {unit.key: len(unit.prompts) for unit in self._queue}
        self._failed: Counter[tuple[str, str]] = Counter()
        self._done = self._given_up = 0

    @property
    def over(self) -> bool:
        """Whether every unit is settled."""
        return not self._open

    @property
    def waiting(self) -> int:
        """Number of tasks that no worker has."""
        return len(self._queue)

    def next(self, suite: str | None = None) -> Unit | None:
        """A task for a free worker, of ``suite`` if there is one. None where all are with workers or settled."""
        if not self._queue:
            return None
        candidates = enumerate(self._queue if suite is not None else ())
        index = next((index for index, task in candidates if task.suite == suite), 0)
        task = self._queue[index]
        del self._queue[index]
        return task

    def returned(self, task: Unit, outcome: UnitOutcome) -> SettledUnit | None:
        """Record the outcome of a task whose worker is alive."""
        self._settling[task.key].add(outcome)
        done = len(task.prompts) - len(outcome.failures)
        self._done += done
        self._open[task.key] -= done
        return self._after_failures(task, outcome.failures)

    def lost(self, task: Unit, reason: str) -> SettledUnit | None:
        """Record that a task's worker died without an outcome."""
        if len(task.prompts) > 1:
            self._queue.extend(_single(task, index) for index in range(len(task.prompts)))
            return None
        return self._after_failures(task, {task.prompts[0].id: reason})

    def _after_failures(self, task: Unit, failures: Mapping[str, str]) -> SettledUnit | None:
        for index, prompt in enumerate(task.prompts):
            if prompt.id in failures:
                self._try_again(_single(task, index), failures[prompt.id])
        if self._open[task.key]:
            return None
        del self._open[task.key]
        return self._settling.pop(task.key)

    def _try_again(self, task: Unit, reason: str) -> None:
        name = (task.key, task.prompts[0].id)
        self._failed[name] += 1
        if self._failed[name] < self._tries:
            self._queue.append(task)
            return
        shortened = textwrap.shorten(reason, _LONGEST_REASON, placeholder=" …")
        set_aside = SetAside(task.suite, task.prompts[0].id, self._failed[name], shortened)
        self._settling[task.key].set_aside.append(set_aside)
        self._open[task.key] -= 1
        self._given_up += 1
        if not self._done and self._given_up >= FUTILE:
            raise EntMTPError(
                f"worker: the first {self._given_up} prompts all failed {self._tries} times, the last with"
                f" '{shortened}'; see the workers' logs"
            )


def _single(task: Unit, index: int) -> Unit:
    """One of a task's prompts as its own task, with its position in the arms' rotation."""
    return replace(task, first=task.first + index, prompts=(task.prompts[index],))


def _merge_metadata(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Maximum of the peaks, sum of the seconds, union of the histories; the latter's value of all else."""
    peaks = {name: max(each.get(name, 0.0) for each in (one, other)) for name in PEAKS}
    seconds = sum(each.get("warm_up_seconds", 0.0) for each in (one, other))
    histories = {**one.get("histories", {}), **other.get("histories", {})}
    return {**one, **other, **peaks, "warm_up_seconds": seconds, "histories": histories}
