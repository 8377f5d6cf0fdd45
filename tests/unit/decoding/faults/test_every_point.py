"""A fault at any operation of prompts, steps and captures harms no other request."""

from __future__ import annotations

import random
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import pytest

from entmtp.decoding.outputs import Completion
from entmtp.decoding.request import Request
from entmtp.heads.base import DraftHeads
from entmtp.models.backbone import Backbone
from entmtp.settings import SamplingParams
from tests.helpers.examples import examples
from tests.helpers.fault_injection import FaultAt, Location
from tests.helpers.faulty_engines import ERRORS, POLICIES, REQUESTS, check, engine_of, run, serve
from tests.helpers.small_cases import small_prompt

Point = tuple[int, int]
"""Number of an engine's step, and of an operation within it."""

each_case = pytest.mark.parametrize(
    ("policy", "error", "captured"),
    [(policy, error, captured) for policy in POLICIES for error in ERRORS for captured in (False, True)],
)


class Case:
    """Engines with one policy, whose parts are captured or not, and one kind of fault.

    Attributes:
        expected: what the requests write if nothing fails.
        faultless: counts of operations in each step then.
    """

    def __init__(
        self, backbone: Backbone, heads: DraftHeads, policy: str, error: str, captured: bool, *, located: bool
    ) -> None:
        self.engine = partial(engine_of, backbone, heads, policy, captured)
        self.error = error
        self.faultless: list[FaultAt] = []

        def counted(step: int) -> FaultAt:
            self.faultless.append(FaultAt(None, ERRORS[error](), located))
            return self.faultless[-1]

        serve(self.engine())  # what the first engine makes for all, such as packed weights, is no later one's
        self.expected = serve(self.engine(), counted)
        assert [one.finish_reason for one in self.expected] == ["length"] * len(REQUESTS)

    def walk(self, points: Mapping[Point, Location | None]) -> None:
        """Serve the requests until a fault came at each of the points, at most one in each step.

        A fault may change what later steps do, so that a point is absent by then, or at another location. It waits for
        another engine until a fault came at its location, or at itself where no location is given.
        """
        waiting = dict(points)
        while waiting:
            faults = {
                step: FaultAt(operation, ERRORS[self.error]()) for step, operation in sorted(waiting, reverse=True)
            }
            self.check(faults)
            came = {(step, fault.at): fault.location for step, fault in faults.items() if fault.location}
            visited = set(came.values())
            left = {
                point: location
                for point, location in waiting.items()
                if (location not in visited if location else point not in came)
            }
            assert len(left) < len(waiting)
            waiting = left

    def check(self, faults: Mapping[int, FaultAt]) -> None:
        """Check that these faults, by step, harm no other request than those in whose own work they come."""
        engine = self.engine()

        def fault_of(step: int) -> AbstractContextManager[object]:
            if step in faults:
                # As if enough steps had passed: a sequence that steps alone would end by a fault of that step.
                engine.runner._retry._steps_alone = 0
            return faults.get(step, nullcontext())

        done = serve(engine, fault_of)
        raised = {step: fault for step, fault in faults.items() if fault.location}
        where = f"{self.error} at {[(step, fault.at, fault.location) for step, fault in raised.items()]}"
        most = sum(most_ended(self.error, fault.callers) for fault in raised.values())
        assert check(engine, done, self.expected, where) <= most, where
        assert engine.runner.state.graphs.disabled_reason is None, where
        assert check(engine, serve(engine), self.expected, f"after {where}") == 0


def most_ended(error: str, callers: frozenset[str]) -> int:
    """Maximum number of requests that a fault may end, by the functions on the stack."""
    if "_compact_slots" in callers:  # the two slots may hold anything; memory is allocated before anything moves
        return 0 if error == "memory" else 2
    own = {"_assign_slot", "_prefill", "_finish", "logprobs_of", "_logprobs", "_advance", "zero_free_rows"}
    return int(bool(own & callers))  # a failed step of the batch is repeated request by request


@each_case
def test_a_fault_at_any_point_harms_no_other(
    policy: str, error: str, captured: bool, backbone: Backbone, heads: DraftHeads
) -> None:
    case = Case(backbone, heads, policy, error, captured, located=False)
    counts = [fault.count for fault in case.faultless]
    points = [(step, operation) for step, count in enumerate(counts) for operation in range(count)]
    case.walk(dict.fromkeys(random.Random(len(points)).sample(points, examples(per_hundred=10))))


@pytest.mark.slow
@each_case
def test_a_fault_at_every_location_harms_no_other(
    policy: str, error: str, captured: bool, backbone: Backbone, heads: DraftHeads
) -> None:
    case = Case(backbone, heads, policy, error, captured, located=True)
    found: dict[Location, list[Point]] = {}
    for step, fault in enumerate(case.faultless):
        for location, operations in fault.locations.items():
            found.setdefault(location, []).extend((step, operation) for operation in operations)
    drawn = random.Random(0)
    case.walk({drawn.choice(points): location for location, points in found.items()})


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
