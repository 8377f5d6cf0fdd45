"""A fault at any operation of prompts, steps and captures harms no other request."""

from __future__ import annotations

import random
from collections.abc import Hashable, Iterable
from contextlib import AbstractContextManager, nullcontext

import pytest

from entmtp.decoding.outputs import Completion
from entmtp.decoding.request import Request
from entmtp.heads.base import DraftHeads
from entmtp.models.backbone import Backbone
from entmtp.settings import SamplingParams
from tests.helpers.examples import examples
from tests.helpers.fault_injection import FaultAt
from tests.helpers.faulty_engines import ERRORS, POLICIES, REQUESTS, check, engine_of, run, serve
from tests.helpers.small_cases import small_prompt

Point = tuple[int, int]
"""Number of an engine's step, and of an operation within it."""

CASES = [(policy, error, captured) for policy in POLICIES for error in ERRORS for captured in (False, True)]


def walk(
    backbone: Backbone, heads: DraftHeads, policy: str, error: str, captured: bool, points: Iterable[Point]
) -> None:
    """Serve the requests once for each point, with the fault injected there."""
    expected = serve(engine_of(backbone, heads, policy, captured))
    assert [one.finish_reason for one in expected] == ["length"] * len(REQUESTS)
    for faulty_step, operation in points:
        engine, fault = engine_of(backbone, heads, policy, captured), FaultAt(operation, ERRORS[error]())
        contexts: dict[int, AbstractContextManager[object]] = {faulty_step: fault}
        done = serve(engine, lambda step, contexts=contexts: contexts.get(step, nullcontext()))  # type: ignore[misc]
        assert fault.where
        where = f"{error} at {operation} of step {faulty_step}, {fault.where}"
        assert check(engine, done, expected, where) <= most_ended(error, fault.callers), where
        assert engine.runner.state.graphs.disabled_reason is None, where
        assert check(engine, serve(engine), expected, f"after {where}") == 0


def most_ended(error: str, callers: frozenset[str]) -> int:
    """Maximum number of requests that a fault may end, by the functions on the stack."""
    if "_compact_slots" in callers:  # the two slots may hold anything; memory is allocated before anything moves
        return 0 if error == "memory" else 2
    own = {"_assign_slot", "_prefill", "_finish", "logprobs_of", "_logprobs", "_advance", "zero_free_rows"}
    return int(bool(own & callers))  # a failed step of the batch is repeated request by request


def points_of(
    backbone: Backbone, heads: DraftHeads, policy: str, error: str, captured: bool
) -> dict[Hashable, list[Point]]:
    """Points at which the fault may come, by the location in the code that they come from."""
    steps: list[FaultAt] = []

    def counted(step: int) -> FaultAt:
        steps.append(FaultAt(None, ERRORS[error]()))
        return steps[-1]

    serve(engine_of(backbone, heads, policy, captured), counted)
    found: dict[Hashable, list[Point]] = {}
    for step, fault in enumerate(steps):
        for location, operations in fault.locations.items():
            found.setdefault(location, []).extend((step, operation) for operation in operations)
    return found


@pytest.mark.parametrize(("policy", "error", "captured"), CASES)
def test_a_fault_at_any_point_harms_no_other(
    policy: str, error: str, captured: bool, backbone: Backbone, heads: DraftHeads
) -> None:
    locations = points_of(backbone, heads, policy, error, captured)
    points = sorted(point for each in locations.values() for point in each)
    drawn = random.Random(len(points)).sample(points, examples(per_hundred=10))
    walk(backbone, heads, policy, error, captured, sorted(drawn))


@pytest.fixture(scope="module")
def every_location(backbone: Backbone, heads: DraftHeads) -> dict[tuple[str, str, bool], list[Point]]:
    """A point of every location in the code, by case: with each error, captured or not, under one of the policies.

    The policies reach mostly the same locations, so each location is tried with one policy that reaches it.
    """
    chosen: dict[tuple[str, str, bool], list[Point]] = {case: [] for case in CASES}
    drawn = random.Random(0)
    for error in ERRORS:
        for captured in (False, True):
            reached: dict[Hashable, list[tuple[str, list[Point]]]] = {}
            for policy in POLICIES:
                for location, points in points_of(backbone, heads, policy, error, captured).items():
                    reached.setdefault(location, []).append((policy, points))
            for by_policy in reached.values():
                policy, points = drawn.choice(by_policy)
                chosen[policy, error, captured].append(drawn.choice(points))
    return chosen


@pytest.mark.slow
@pytest.mark.parametrize(("policy", "error", "captured"), CASES)
def test_a_fault_at_every_point_harms_no_other(
    policy: str,
    error: str,
    captured: bool,
    backbone: Backbone,
    heads: DraftHeads,
    every_location: dict[tuple[str, str, bool], list[Point]],
) -> None:
    walk(backbone, heads, policy, error, captured, every_location[policy, error, captured])


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
