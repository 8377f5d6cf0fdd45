"""Prediction of how long a request waits, and refusal of one that would wait for too long."""

from __future__ import annotations

import math
from collections.abc import Sequence as GenericSequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entmtp.decoding.batch import Batch, BatchResult, PrefillChunk
from entmtp.decoding.engine import Engine
from entmtp.decoding.request import Request
from entmtp.decoding.sampling import Sampler
from entmtp.decoding.scheduler import EngineFullError
from entmtp.decoding.sequence import Sequence
from entmtp.decoding.workload import Workload
from entmtp.models.backbone import Backbone
from entmtp.policies.static import StaticPolicy
from entmtp.settings import EngineSettings, SamplingParams
from tests.helpers.small_cases import small_prompt
from tests.helpers.tiny_models import CONTEXT, TREES

READ_SECONDS, WRITE_SECONDS = 0.01, 0.5
"""Seconds per prompt token and per new token of the measured engine."""


def sequence(answer: int, prompt: int = 0, written: int = 0, **fields: Any) -> Sequence:
    """A sequence of ``answer`` tokens at most, of which some are ``written``."""
    params = SamplingParams(max_tokens=answer)
    made = Sequence(Request("r", [1] * prompt, params, **fields), Sampler(params))
    made.completion.tokens = [1] * written
    return made


def measured() -> Workload:
    """A workload that has seen a step; its answers have been as long as any limit in these tests."""
    made, one = Workload(), sequence(4, prompt=100)
    result = BatchResult(Batch([one], [PrefillChunk(one, [1] * 100)], []), new_tokens={one: [1, 2]})
    result.prefill_seconds, result.decode_seconds = 100 * READ_SECONDS, 2 * WRITE_SECONDS
    made.observe(result)
    return made


def simulated(running: GenericSequence[float], waiting: GenericSequence[float], slots: int) -> float:
    """Seconds until a slot is free for one more, in small steps of time."""
    active, queue, now, tick = list(running), [*waiting, math.inf], 0.0, 1e-3
    while True:
        while len(active) < slots:
            one = queue.pop(0)
            if one == math.inf:
                return now
            active.append(one)
        now += tick
        active = [left - tick / len(active) for left in active]
        active = [left for left in active if left > 1e-9]


@given(st.lists(st.integers(1, 6), max_size=3), st.lists(st.integers(1, 6), max_size=5))
def test_the_wait_is_that_of_requests_that_share_the_speed(running: list[int], waiting: list[int]) -> None:
    slots = 3
    waiting = waiting if len(running) == slots else []
    wait = measured().wait(map(sequence, running), map(sequence, waiting), slots)
    active, queue = ([WRITE_SECONDS * tokens for tokens in each] for each in (running, waiting))
    assert wait == pytest.approx(simulated(active, queue, slots), abs=0.1)


def test_prompts_count_at_the_speed_of_reading() -> None:
    wait = measured().wait([sequence(2, prompt=300)], [sequence(4, prompt=100)], slots=1)
    assert wait == pytest.approx(400 * READ_SECONDS + 6 * WRITE_SECONDS)


def test_an_answer_is_predicted_to_be_as_long_as_the_last_ones() -> None:
    workload, long = measured(), sequence(8000, written=10)
    assert workload.predicted_tokens(long) == 256
    for _ in range(100):
        workload.observe_answer(20, complete=True)
    assert workload.predicted_tokens(long) == pytest.approx(20, rel=0.1)
    assert workload.predicted_tokens(sequence(12, written=10)) == 2
    for _ in range(20):
        workload.observe_answer(1, complete=False)  # each might have been of any length
    assert workload.predicted_tokens(long) == pytest.approx(20, rel=0.1)
    workload.observe_answer(2000, complete=False)
    assert workload.predicted_tokens(long) > 100


def test_an_engine_that_has_not_run_yet_refuses_nobody() -> None:
    assert Workload().wait([sequence(8000)] * 8, [sequence(8000)] * 99, slots=8) == 0


def full_engine(backbone: Backbone, **limits: float) -> Engine:
    """An engine with a request in its only slot that needs 20 more tokens of 1 s each, and one that waits for it."""
    settings = EngineSettings.parse(slots=1, context=CONTEXT, **limits)
    engine = Engine(backbone, None, StaticPolicy(TREES["root"], 8), settings)
    for name in "ab":
        engine.submit(Request(name, small_prompt(3), SamplingParams(temperature=0.0, max_tokens=21)))
    engine.step()
    engine.scheduler.workload = workload = Workload()
    one = sequence(4)
    result = BatchResult(Batch([one], [], []), new_tokens={one: [1]})
    result.decode_seconds = 1.0
    workload.observe(result)
    return engine


def refusal(engine: Engine, **fields: Any) -> EngineFullError:
    with pytest.raises(EngineFullError) as refused:
        engine.submit(Request("c", small_prompt(3), SamplingParams(max_tokens=5), **fields))
    return refused.value


def test_a_request_that_would_wait_for_too_long_learns_when_to_come_again(backbone: Backbone) -> None:
    error = refusal(full_engine(backbone, max_wait_seconds=30))
    assert "would wait for 41 s, longer than 30 s" in str(error)
    assert (error.retry_seconds, error.own) == (11, False)


def test_a_deadline_of_its_own_refuses_one_request_alone(backbone: Backbone) -> None:
    engine = full_engine(backbone, max_wait_seconds=60)
    error = refusal(engine, max_wait_seconds=40.5)
    assert (error.retry_seconds, error.own) == (1, True)
    engine.submit(Request("d", small_prompt(3), SamplingParams(max_tokens=5), max_wait_seconds=50))


def test_a_queue_of_many_says_when_its_next_place_is_free(backbone: Backbone) -> None:
    error = refusal(full_engine(backbone, max_wait_seconds=300, max_waiting=1))
    assert "1 requests wait already" in str(error)
    assert (error.retry_seconds, error.own) == (21, False)


def test_those_that_wait_begin_in_the_order_of_arrival(backbone: Backbone) -> None:
    settings = EngineSettings(slots=2, context=CONTEXT)
    engine = Engine(backbone, None, StaticPolicy(TREES["root"], 8), settings)
    names = [str(at) for at in range(64)]
    for at, name in enumerate(names):
        engine.submit(Request(name, small_prompt(3, at), SamplingParams(temperature=0.0, max_tokens=1 + at % 5)))
    begun: dict[str, None] = {}
    while not engine.idle:
        begun |= dict.fromkeys(output.id for output in engine.step())
    assert list(begun) == names


@given(st.lists(st.integers(0, 2), min_size=1, max_size=12))
def test_a_smaller_priority_begins_first_and_equal_ones_in_order(backbone: Backbone, priorities: list[int]) -> None:
    engine = Engine(backbone, None, StaticPolicy(TREES["root"], 8), EngineSettings(slots=1, context=CONTEXT))
    params = SamplingParams(temperature=0.0, max_tokens=1)
    engine.submit(Request("first", small_prompt(3), params))
    engine.scheduler.schedule()  # it has its slot before the others come
    for at, priority in enumerate(priorities):
        engine.submit(Request(str(at), small_prompt(3), params, priority=priority))
    ended = []
    while not engine.idle:
        ended += [output.id for output in engine.step() if output.finish_reason]
    assert ended == ["first", *(str(at) for at, _ in sorted(enumerate(priorities), key=lambda each: each[1]))]


def test_requests_begin_in_the_order_in_which_a_service_received_them(backbone: Backbone) -> None:
    engine = Engine(backbone, None, StaticPolicy(TREES["root"], 8), EngineSettings(slots=1, context=CONTEXT))
    for name, arrived in (("third", 3.0), ("first", 1.0), ("second", 2.0), ("fourth", 3.0)):
        engine.submit(Request(name, small_prompt(3), SamplingParams(max_tokens=1), arrived=arrived))
    ended = []
    while not engine.idle:
        ended += [output.id for output in engine.step() if output.finish_reason]
    assert ended == ["first", "second", "third", "fourth"]


def test_a_request_waits_for_those_before_it_alone(backbone: Backbone) -> None:
    engine = full_engine(backbone, max_wait_seconds=30)
    engine.cancel("b")
    engine.submit(Request("patient", small_prompt(3), SamplingParams(max_tokens=21), priority=5))
    engine.submit(Request("c", small_prompt(3), SamplingParams(max_tokens=5)))
    error = refusal(engine, priority=5)
    assert (error.retry_seconds, error.own) == (16, True)
