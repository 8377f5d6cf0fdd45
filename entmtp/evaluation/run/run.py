"""The benchmark's driver: hands the waiting units to an executor and writes each unit's part.

``jobs/benchmark.py`` runs the units on a Ray cluster and ``entmtp benchmark`` in this process. Both use this file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict

from rich.console import Console

from entmtp.evaluation.analysis.overlap_description import describe_overlap
from entmtp.evaluation.results.rows import write_part
from entmtp.evaluation.run.interim import InterimResults
from entmtp.evaluation.run.plan import Plan, bank_task
from entmtp.evaluation.run.progress import Progress, WorkerStates
from entmtp.evaluation.run.units import Unit
from entmtp.evaluation.run.work_queue import SettledUnit
from entmtp.provenance import git_commit
from entmtp.suites import get_suite

_WRITERS = 4


def describe(plan: Plan) -> Iterator[str]:
    """A line for each suite (prompts, token budget, tree banks), then one for each kind of heads."""
    for suite in dict.fromkeys(unit.suite for unit in plan.units):
        units = [unit for unit in plan.units if unit.suite == suite]
        tokens = get_suite(suite).protocol.token_budget(plan.settings.max_new_tokens)
        count = sum(len(unit.prompts) for unit in units)
        yield (
            f"{suite}: {count} prompts ({units[0].source}), up to {tokens} new tokens,"
            f" tree banks of '{bank_task(plan.config, suite)}'"
        )
    yield from describe_overlap(plan.overlap)


def run_units(
    plan: Plan, run: Callable[[list[Unit]], Iterator[SettledUnit]], console: Console, worker_states: WorkerStates = list
) -> None:
    """Run the waiting units through ``run``, write each one's part as it arrives, and print interim results.

    Parts are written by other threads than the loop that hands out work, so that no worker waits for a slow storage.

    Args:
        worker_states: for the progress, as :meth:`Executor.worker_states`.

    Raises:
        EntMTPError: the results can't be written.
    """
    waiting, total = plan.waiting, len(plan.units)
    if len(waiting) < total:
        console.print(f"{total - len(waiting)} of {total} units are in {plan.parts} already and are not run again")
    if note := plan.foreign_parts_note():
        console.print(note, soft_wrap=True)
    interim = InterimResults(waiting)
    writing: list[Future[None]] = []
    with Progress(console, plan.units, waiting, worker_states) as progress, ThreadPoolExecutor(_WRITERS) as writers:
        for settled in run(waiting):
            writing.append(writers.submit(save_unit, plan, settled))
            while writing and writing[0].done():
                writing.pop(0).result()
            progress.settled(settled)
            if line := interim.add(settled):
                console.print(line, soft_wrap=True, markup=False, highlight=False)
        for write in writing:
            write.result()


def save_unit(plan: Plan, settled: SettledUnit) -> None:
    """Write a unit's part, whole or not at all."""
    metadata = {
        "unit": settled.unit.key,
        "depends_on": plan.depends_on,
        "busy_seconds": settled.busy_seconds,
        "git_commit": git_commit(),
        "set_aside": [asdict(prompt) for prompt in settled.set_aside],
        **settled.metadata,
    }
    write_part(plan.parts, settled.unit.key, settled.requests, settled.steps, metadata)
