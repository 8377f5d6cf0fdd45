"""Rows of what was measured: a request of an arm, and its steps."""

from __future__ import annotations

from typing import NamedTuple

from entmtp.decoding.outputs import Completion
from entmtp.evaluation.analysis.score import score
from entmtp.evaluation.results.rows import RequestRow, StepRow
from entmtp.evaluation.run.reference import Reference, first_difference
from entmtp.evaluation.run.units import Unit
from entmtp.suites import Prompt


class TimedRequest(NamedTuple):
    """Which request it is: the prompt's, by an arm, for the ``repetition``-th time, as the ``order``-th of the arms."""

    unit: Unit
    prompt: Prompt
    arm: str
    repetition: int
    order: int


def request_row(
    timed_request: TimedRequest,
    prompt_tokens: int,
    done: Completion,
    text: str,
    reference: Reference,
    log_likelihood: float,
) -> RequestRow:
    """A request that wrote ``text``."""
    difference = first_difference(done.tokens, reference.tokens)
    return RequestRow(
        suite=timed_request.unit.suite,
        source=timed_request.unit.source,
        arm=timed_request.arm,
        prompt_id=timed_request.prompt.id,
        repetition=timed_request.repetition,
        order=timed_request.order,
        prompt_tokens=prompt_tokens,
        new_tokens=len(done.tokens),
        steps=len(done.steps),
        drafted=done.drafted,
        captures=done.captures,
        unsettled_steps=done.unsteady_steps,
        seconds=done.seconds,
        prefill_seconds=done.prefill_seconds,
        draft_seconds=done.part_seconds("draft"),
        verify_seconds=done.part_seconds("verify"),
        accept_seconds=done.part_seconds("accept") + done.part_seconds("compact"),
        policy_seconds=done.part_seconds("policy"),
        identical=difference < 0,
        first_difference=difference,
        tie_margin=float("nan") if difference < 0 else reference.margin_at(difference),
        score=score(timed_request.prompt, text),
        log_likelihood=log_likelihood,
        text=text,
        token_ids=done.tokens,
    )


def step_rows(row: RequestRow, done: Completion) -> list[StepRow]:
    """The steps of a request."""
    return [
        StepRow(
            suite=row.suite,
            arm=row.arm,
            prompt_id=row.prompt_id,
            repetition=row.repetition,
            step=number,
            position=step.position,
            tree=step.topology.name,
            nodes=step.topology.nodes,
            depth=step.topology.max_depth,
            accepted=min(step.gained, row.new_tokens - step.position),
            entropy=step.signals.entropy,
            entropy_ema=step.signals.entropy_ema,
            draft_ms=step.draft_ms,
            verify_ms=step.verify_ms,
            accept_ms=step.accept_ms + step.compact_ms,
            policy_ms=step.policy_ms,
            accepted_path=list(step.path),
        )
        for number, step in enumerate(done.steps)
    ]
