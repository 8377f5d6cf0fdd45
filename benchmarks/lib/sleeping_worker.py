"""A benchmark worker that sleeps instead of decoding. Its module loads no PyTorch, so its process starts at once."""

from __future__ import annotations

import time

from entmtp.evaluation.results.rows import RequestRow, StepRow, tables_of
from entmtp.evaluation.run.units import Unit
from entmtp.evaluation.run.work_queue import UnitOutcome
from entmtp.suites import Prompt

_REQUESTS, _STEPS = 33, 40  # of a unit: eleven arms, three times each, 40 steps in a request


class SleepingWorker:
    """A worker that sleeps instead of decoding, and returns as many rows as a prompt of the standard profile has."""

    def load(self) -> str:
        """Name of its hardware."""
        return "none"

    def run(self, unit: Unit, seconds: float) -> UnitOutcome:
        """Sleep for ``seconds`` for each prompt."""
        began = time.perf_counter()
        requests: list[RequestRow] = []
        steps: list[StepRow] = []
        for prompt in unit.prompts:
            time.sleep(seconds)
            for number in range(_REQUESTS):
                requests.append(request_row(unit, prompt, number, seconds))
                steps += [step_row(unit, prompt, number, step) for step in range(_STEPS)]
        tables = tables_of(requests, steps)
        return UnitOutcome(*tables, {}, time.perf_counter() - began, {"hardware": "none", "peak_memory_mib": 0.0})


def request_row(unit: Unit, prompt: Prompt, number: int, seconds: float) -> RequestRow:
    """Row of a request with two new tokens in each step."""
    return RequestRow(
        suite=unit.suite,
        source=unit.source,
        arm=f"arm-{number // 3}",
        prompt_id=prompt.id,
        repetition=number % 3,
        order=number // 3,
        prompt_tokens=64,
        new_tokens=2 * _STEPS,
        steps=_STEPS,
        drafted=8 * _STEPS,
        captures=0,
        unsettled_steps=0,
        seconds=seconds / _REQUESTS,
        prefill_seconds=0.0,
        draft_seconds=0.0,
        verify_seconds=0.0,
        accept_seconds=0.0,
        policy_seconds=0.0,
        identical=True,
        first_difference=-1,
        tie_margin=float("nan"),
        score=None,
        log_likelihood=-0.5,
        text="word " * 2 * _STEPS,
        token_ids=list(range(2 * _STEPS)),
    )


def step_row(unit: Unit, prompt: Prompt, number: int, step: int) -> StepRow:
    """Row of a step with a tree of eight nodes."""
    return StepRow(
        suite=unit.suite,
        arm=f"arm-{number // 3}",
        prompt_id=prompt.id,
        repetition=number % 3,
        step=step,
        position=2 * step,
        tree="eight",
        nodes=8,
        depth=4,
        accepted=2,
        entropy=0.5,
        entropy_ema=0.5,
        draft_ms=1.0,
        verify_ms=10.0,
        accept_ms=0.1,
        policy_ms=0.1,
        accepted_path=[0],
    )
