"""The dry run of a benchmark: prints its plan and estimates its duration."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean

from rich.console import Console
from rich.table import Table

from entmtp.errors import EntMTPError
from entmtp.evaluation.results.rows import finished_keys, read_metadata
from entmtp.evaluation.run.arms import needs_foresight
from entmtp.evaluation.run.executor import Executor
from entmtp.evaluation.run.plan import Plan
from entmtp.evaluation.run.units import Unit

ASSUMED_TOKENS_PER_SECOND = 30.0
"""Speed of one worker: about plain decoding of a model of 7 billion float32 weights on a data-centre GPU."""
_ENOUGH = 32  # finished units whose seconds are averaged


@dataclass(frozen=True)
class DurationEstimate:
    """Estimated time of the waiting units.

    Attributes:
        seconds: of one worker that runs them all.
        basis: of the estimate, for a reader.
    """

    seconds: float
    basis: str


def tokens_of(plan: Plan, units: Sequence[Unit]) -> int:
    """Most tokens that all requests of these units generate.

    Counts each arm and repetition, the reference, the controls' dynamic run, and on a GPU one warm-up per arm.
    """
    runs = plan.settings.repetitions + (plan.config.device == "cuda")
    requests = len(plan.arms) * runs + 1 + any(map(needs_foresight, plan.arms))
    return sum(len(unit.prompts) for unit in units) * requests * plan.settings.max_new_tokens


def estimate_duration(plan: Plan, waiting: Sequence[Unit], tokens_per_second: float | None) -> DurationEstimate:
    """Estimate from the given speed, else from this plan's finished units, else from an assumed speed.

    Raises:
        EntMTPError: the speed is not a number above 0.
    """
    if tokens_per_second is not None and not (math.isfinite(tokens_per_second) and tokens_per_second > 0):
        raise EntMTPError(f"tokens_per_second: {tokens_per_second:g} is not accepted; give a number above 0")
    if tokens_per_second is None and (seconds := _seconds_per_prompt(plan)) is not None:
        prompts = sum(len(unit.prompts) for unit in waiting)
        return DurationEstimate(prompts * seconds, "the units that are done")
    speed = tokens_per_second or ASSUMED_TOKENS_PER_SECOND
    origin = "as stated" if tokens_per_second else "assumed; state yours with --tokens-per-second"
    return DurationEstimate(
        tokens_of(plan, waiting) / speed, f"every answer at its longest and {speed:g} tokens/s of a worker, {origin}"
    )


def _seconds_per_prompt(plan: Plan) -> float | None:
    finished = finished_keys(plan.parts)
    done = [unit for unit in plan.units if unit.key in finished][:_ENOUGH]
    if not done:
        return None
    metadata = read_metadata(plan.parts, [unit.key for unit in done])
    return fmean(part.get("busy_seconds", 0.0) / len(unit.prompts) for part, unit in zip(metadata, done, strict=True))


def show_plan(plan: Plan, executor: Executor, workers: int, tokens_per_second: float | None, console: Console) -> None:
    """Print the plan: what would run, where, and for about how long with so many ``workers``."""
    waiting = plan.waiting
    table = Table("suite", "prompts from", "prompts", "units", "units that wait")
    for suite in dict.fromkeys(unit.suite for unit in plan.units):
        units = [unit for unit in plan.units if unit.suite == suite]
        left = sum(unit.suite == suite for unit in waiting)
        prompts = sum(len(unit.prompts) for unit in units)
        table.add_row(suite, units[0].source, str(prompts), str(len(units)), str(left))
    console.print(table)
    settings = plan.settings
    say = partial(console.print, soft_wrap=True, markup=False, highlight=False)
    say(f"{len(plan.arms)} arms: {', '.join(plan.arms)}")
    say(f"{settings.repetitions} repetitions of each arm on each prompt, up to {settings.max_new_tokens} tokens each")
    say(f"model {plan.config.model} in {plan.config.dtype}; results in {plan.results}; {executor.description}")
    estimate = estimate_duration(plan, waiting, tokens_per_second)
    hours = estimate.seconds / 3600
    unit = "GPU-hours" if executor.gpus_per_worker else "worker-hours"
    used = hours * (executor.gpus_per_worker or 1)
    say(f"about {used:.2g} {unit}, {_time(estimate.seconds / workers)} on {workers} workers")
    say(f"that rests on {estimate.basis}")


def _time(seconds: float) -> str:
    return f"{seconds / 60:.1f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
