"""Rows of one completion: the request of an arm, and its steps."""

from __future__ import annotations

from typing import NamedTuple

from entmtp.decoding.outputs import Completion
from entmtp.evaluation.analysis.score import score
from entmtp.evaluation.results.rows import RequestRow, StepRow
from entmtp.evaluation.run.reference import Reference, first_difference
from entmtp.evaluation.run.units import Unit
from entmtp.suites import Prompt


class TimedRequest(NamedTuple):
    """Identity of a timed request: arm ``order`` of the rotation, in one repetition of a prompt."""

    unit: Unit
    prompt: Prompt
    arm: str
    repetition: int
    order: int


def request_row(
    timed: TimedRequest,
    prompt_tokens: int,
    done: Completion,
    text: str,
    reference: Reference,
    log_likelihood: float,
) -> RequestRow:
    """The row of a request that generated ``text``."""
    difference = first_difference(done.tokens, reference.tokens)
    return RequestRow(
        suite=timed.unit.suite,
        source=timed.unit.source,
        arm=timed.arm,
        prompt_id=timed.prompt.id,
        repetition=timed.repetition,
        order=timed.order,
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
        score=score(timed.prompt, text),
        log_likelihood=log_likelihood,
        text=text,
        token_ids=done.tokens,
    )


def step_rows(row: RequestRow, done: Completion) -> list[StepRow]:
    """The rows of a request's steps."""
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
