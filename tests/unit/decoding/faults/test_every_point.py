"""A fault at any operation of prompts, steps and captures harms no other request."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from entmtp.decoding.outputs import Completion
from entmtp.decoding.request import Request
from entmtp.heads.base import DraftHeads
from entmtp.models.backbone import Backbone
from entmtp.settings import SamplingParams
from tests.helpers.fault_injection import FaultAt
from tests.helpers.faulty_engines import ERRORS, POLICIES, REQUESTS, check, engine_of, run, serve
from tests.helpers.small_cases import small_prompt

Points = list[list[int]]
"""Numbers of the operations, grouped by the location in the code that they come from."""

Draw = Callable[[Points], list[int]]


def walk(
    backbone: Backbone,
    heads: DraftHeads,
    policy: str,
    error: str,
    captured: bool,
    draw: Draw,
) -> None:
    """Serve the requests once for each drawn operation, with the fault injected there."""
    expected = serve(engine_of(backbone, heads, policy, captured))
    assert [one.finish_reason for one in expected] == ["length"] * len(REQUESTS)
    for at in draw(_points(backbone, heads, policy, error, captured)):
        engine = engine_of(backbone, heads, policy, captured)
        with FaultAt(at, ERRORS[error]()) as fault:
            done = serve(engine)
        assert fault.where
        where = f"{error} at {at}, {fault.where}"
        assert check(engine, done, expected, where) <= most_ended(error, fault.callers), where
        assert engine.runner.state.graphs.disabled_reason is None, where
        assert check(engine, serve(engine), expected, f"after {where}") == 0


def most_ended(error: str, callers: frozenset[str]) -> int:
    """Maximum number of requests that a fault may end, by the functions on the stack."""
    if "_compact_slots" in callers:  # the two slots may hold anything; memory is allocated before anything moves
        return 0 if error == "memory" else 2
    own = {"_assign_slot", "_prefill", "_finish", "logprobs_of", "_logprobs", "_advance", "zero_free_rows"}
    return int(bool(own & callers))  # a failed step of the batch is repeated request by request


def _points(backbone: Backbone, heads: DraftHeads, policy: str, error: str, captured: bool) -> Points:
    engine = engine_of(backbone, heads, policy, captured)
    with FaultAt(None, ERRORS[error]()) as fault:
        serve(engine)
    return list(fault.locations.values())


def some(points: Points) -> list[int]:
    """Ten operations of all."""
    numbers = sorted(number for location in points for number in location)
    return sorted(random.Random(len(numbers)).sample(numbers, 10))


def every(points: Points) -> list[int]:
    """One operation of each location in the code."""
    drawn = random.Random(len(points))
    return [drawn.choice(location) for location in points]


CASES = [(policy, error, captured) for policy in POLICIES for error in ERRORS for captured in (False, True)]


@pytest.mark.parametrize(("policy", "error", "captured"), CASES)
def test_a_fault_at_any_point_harms_no_other(
    policy: str, error: str, captured: bool, backbone: Backbone, heads: DraftHeads
) -> None:
    walk(backbone, heads, policy, error, captured, some)


@pytest.mark.slow
@pytest.mark.parametrize(("policy", "error", "captured"), CASES)
def test_a_fault_at_every_point_harms_no_other(
    policy: str, error: str, captured: bool, backbone: Backbone, heads: DraftHeads
) -> None:
    walk(backbone, heads, policy, error, captured, every)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_step_that_is_taken_again_teaches_once(policy: str, backbone: Backbone, heads: DraftHeads) -> None:
    def alone(at: int | None) -> tuple[Completion, int]:
        engine = engine_of(backbone, heads, policy)
        with FaultAt(at, ValueError("broken")) as fault:
            done = engine.submit(Request("one", small_prompt(5), SamplingParams(temperature=0.0, max_tokens=12)))
            run(engine)
        return done, fault.count

    expected, count = alone(None)
    for at in range(count // 3, count, count // 9):
        done, _ = alone(at)
        if not done.error:
            assert [(step.signals, step.topology) for step in done.steps] == [
                (step.signals, step.topology) for step in expected.steps
            ]
