"""Faults of one request, or of one moment, harm no other: injected at every point of prompts, steps and captures."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models

from entmtp.decoding import engine as engine_module
from entmtp.decoding import step as step_module
from entmtp.decoding import step_retry
from entmtp.decoding.acceptance import Accepted, Outcome, accept_greedy
from entmtp.decoding.detokenizer import Detokenizer
from entmtp.decoding.engine import Engine
from entmtp.decoding.faults import is_out_of_memory
from entmtp.decoding.graphs import CapturedGraph, Graphs
from entmtp.decoding.outputs import Completion, RequestOutput, logprobs_of
from entmtp.decoding.request import Request
from entmtp.decoding.sampling import Sampler
from entmtp.decoding.text import TextStream
from entmtp.heads.base import DraftHeads
from entmtp.models.backbone import Backbone
from entmtp.policies.base import Policy
from entmtp.policies.dynamic import DynamicPolicy
from entmtp.policies.goodput import GoodputPolicy
from entmtp.policies.ladder import Ladder, LadderPolicy
from entmtp.policies.static import SequencePolicy, StaticPolicy
from entmtp.settings import EngineSettings, SamplingParams
from entmtp.trees.batch import TreeBatch
from tests.helpers.fault_injection import FaultAt
from tests.helpers.hydra_plus_plus_heads import random_hydra_plus_plus_heads
from tests.helpers.small_cases import (
    SMALL_VOCAB,
    small_backbone,
    small_chances,
    small_cost,
    small_heads,
    small_predictor,
    small_prompt,
)
from tests.helpers.taped_graphs import Taped
from tests.helpers.tiny_models import TREES, greedy

POLICIES: dict[str, Callable[[], Policy]] = {
    "plain": lambda: StaticPolicy(TREES["root"], 8),
    "static": lambda: StaticPolicy(TREES["bushy"], 8),
    "sequence": lambda: SequencePolicy([TREES["bushy"], TREES["root"], TREES["chain"], TREES["wide"]], 8),
    "ladder": lambda: LadderPolicy(Ladder((0.5, 1.5), (TREES["bushy"], TREES["chain"], TREES["root"]), 8), 0.05),
    "goodput": lambda: GoodputPolicy(small_predictor(), lambda batch, context: small_cost(), 8),
    "dynamic": lambda: DynamicPolicy(small_predictor(), small_chances(), lambda batch, context: small_cost(), 8),
}
Points = list[list[int]]
"""Numbers of the operations that each place of the code makes, as it is passed again and again."""

Draw = Callable[[Points], list[int]]
SLOTS = 3
REQUESTS: list[tuple[list[int], dict[str, Any]]] = [
    (small_prompt(3, seed=1), {"max_tokens": 3}),  # the first to end: the others move to the front
    (small_prompt(9, seed=2), {"max_tokens": 8, "logprobs": 2}),
    (small_prompt(5, seed=3), {"max_tokens": 7, "temperature": 0.9, "seed": 4, "repetition_penalty": 1.2}),
    (small_prompt(9, seed=2), {"max_tokens": 6}),  # begins as the second does
]
ERRORS: dict[str, Callable[[], Exception]] = {
    "memory": lambda: torch.OutOfMemoryError("CUDA out of memory"),
    "other": lambda: ValueError("broken"),
}


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    """Runs on operators alone, so that there is a point at each of them."""
    return small_backbone(kernels="eager", num_hidden_layers=1)


@pytest.fixture(scope="module")
def heads(backbone: Backbone) -> DraftHeads:
    return small_heads("hydra", backbone)


def engine_of(backbone: Backbone, heads: DraftHeads, policy: str, captured: bool = False) -> Engine:
    sizes: dict[str, Any] = {"slots": SLOTS, "context": 48, "prefill_tokens": 6}
    engine = Engine(backbone, heads, POLICIES[policy](), EngineSettings.parse(**sizes))
    if captured:
        engine._state_and_slots()[0].graphs = Graphs(Taped())
    return engine


def serve(engine: Engine) -> list[Completion]:
    done = [
        engine.submit(Request(str(at), prompt, SamplingParams.parse(**({"temperature": 0.0} | params))))
        for at, (prompt, params) in enumerate(REQUESTS)
    ]
    run(engine)
    return done


def run(engine: Engine) -> list[RequestOutput]:
    progress = []
    while not engine.idle:
        progress += engine.step()
    return progress


def check(engine: Engine, done: Sequence[Completion], expected: Sequence[Completion], where: str) -> int:
    """Nobody has a wrong token, slots are free and clean; how many ended with an error."""
    for one, right in zip(done, expected, strict=True):
        if one.finish_reason == "error":
            assert one.error, where
            assert one.tokens == right.tokens[: len(one.tokens)], where
        else:
            assert one.tokens == right.tokens, where
            assert [each.chosen for each in one.logprobs] == pytest.approx(
                [each.chosen for each in right.logprobs], abs=1e-4
            )
    assert engine._state_and_slots()[1].free == SLOTS
    return sum(one.finish_reason == "error" for one in done)


def walk(
    backbone: Backbone,
    heads: DraftHeads,
    policy: str,
    error: str,
    captured: bool,
    points: Callable[[Points], list[int]],
) -> None:
    """Serves the requests once for each point, with the fault there."""
    expected = serve(engine_of(backbone, heads, policy, captured))
    assert [one.finish_reason for one in expected] == ["length"] * len(REQUESTS)
    for at in points(_points(backbone, heads, policy, error, captured)):
        engine = engine_of(backbone, heads, policy, captured)
        with FaultAt(at, ERRORS[error]()) as fault:
            done = serve(engine)
        assert fault.where
        where = f"{error} at {at}, {fault.where}"
        assert check(engine, done, expected, where) <= most_ended(error, fault.callers), where
        assert engine._state_and_slots()[0].graphs.disabled_reason is None, where
        assert check(engine, serve(engine), expected, f"after {where}") == 0


def most_ended(error: str, callers: frozenset[str]) -> int:
    """Requests that a fault may end at most, by the functions that it ended."""
    if "_compact_slots" in callers:  # their two slots may hold anything; memory is taken before anything moves
        return 0 if error == "memory" else 2
    own = {"_assign_slot", "_prefill_chunk", "_finish", "logprobs_of", "_logprobs", "_advance", "zero_free_rows"}
    return int(bool(own & callers))  # a step that all take together is taken again


def _points(backbone: Backbone, heads: DraftHeads, policy: str, error: str, captured: bool) -> Points:
    engine = engine_of(backbone, heads, policy, captured)
    with FaultAt(None, ERRORS[error]()) as fault:
        serve(engine)
    return list(fault.places.values())


def some(points: Points) -> list[int]:
    """Ten of all."""
    numbers = sorted(number for place in points for number in place)
    return sorted(random.Random(len(numbers)).sample(numbers, 10))


def every(points: Points) -> list[int]:
    """One of each place of the code, whichever time it is passed."""
    drawn = random.Random(len(points))
    return [drawn.choice(place) for place in points]


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


MARKED = SamplingParams(temperature=0.5, seed=3, max_tokens=9, logprobs=7, repetition_penalty=1.3, stop=["never"])
"""Parameters of the request at fault: it is drawn, its logits are shaped, its log-probabilities are reported."""


class BrokenText:
    """The text of the request at fault; that of others is real."""

    def __new__(cls, detokenizer: Detokenizer, stop: Sequence[str], *args: Any) -> Any:
        return super().__new__(cls) if list(stop) == MARKED.stop else TextStream(detokenizer, stop, *args)

    stopped = None

    def push(self, token: int) -> str:
        raise Exception("Invalid prefix encountered while decoding stream")


def broken_sampler(name: str, error: Exception) -> Callable[..., Any]:
    real = getattr(Sampler, name)

    def broken(self: Sampler, *args: Any) -> Any:
        if self.params.logprobs == MARKED.logprobs:
            raise error
        return real(self, *args)

    return broken


def broken_logprobs(error: Exception) -> Callable[..., Any]:
    def broken(logits: torch.Tensor, tokens: Sequence[int], count: int) -> Any:
        if count == MARKED.logprobs:
            raise error
        return logprobs_of(logits, tokens, count)

    return broken


FENCED: dict[str, tuple[Any, str, Callable[[Exception], Any]]] = {
    "random numbers": (Sampler, "uniform", lambda error: broken_sampler("uniform", error)),
    "penalties": (Sampler, "observe_prompt", lambda error: broken_sampler("observe_prompt", error)),
    "shaping": (Sampler, "process_logits", lambda error: broken_sampler("process_logits", error)),
    "what was written": (Sampler, "observe_tokens", lambda error: broken_sampler("observe_tokens", error)),
    "first logprobs": (engine_module, "logprobs_of", broken_logprobs),
    "logprobs": (step_module, "logprobs_of", broken_logprobs),
    "text": (engine_module, "TextStream", lambda error: BrokenText),
}


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("where", FENCED)
def test_what_fails_in_one_request_ends_it_alone(
    where: str, error: str, backbone: Backbone, heads: DraftHeads, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = Tokenizer(models.WordLevel({str(at): at for at in range(SMALL_VOCAB)}, unk_token="0"))
    expected = serve(engine_of(backbone, heads, "sequence"))
    engine = engine_of(backbone, heads, "sequence")
    engine.detokenizer = Detokenizer(tokenizer)
    owner, name, broken = FENCED[where]
    monkeypatch.setattr(owner, name, broken(ERRORS[error]()))
    marked = engine.submit(Request("marked", small_prompt(5, seed=9), MARKED))
    done = serve(engine)
    assert marked.finish_reason == "error"
    assert ("out of memory" if error == "memory" and where != "text" else "failed") in str(marked.error)
    assert check(engine, done, expected, where) == 0
    assert all(len(one.text.split()) == len(one.tokens) for one in done)


@pytest.mark.parametrize("captured", [False, True])
@pytest.mark.parametrize("kind", ["hydra", "prefix"])
def test_a_slot_that_held_what_is_not_a_number_is_clean_for_the_next(
    kind: str, captured: bool, backbone: Backbone
) -> None:
    heads = small_heads("hydra", backbone) if kind == "hydra" else random_hydra_plus_plus_heads(backbone)
    engine = engine_of(backbone, heads, "sequence", captured)
    expected = serve(engine)
    state, _ = engine._state_and_slots()
    for _ in range(SLOTS):
        bad = engine.submit(Request("bad", small_prompt(30), SamplingParams(temperature=0.0, max_tokens=9)))
        good = engine.submit(Request("good", small_prompt(3), SamplingParams(temperature=0.0, max_tokens=9)))
        while not engine.idle and not any(job.running for job in engine._jobs if job.request.id == "bad"):
            engine.step()
        (job,) = [job for job in engine._jobs if job.request.id == "bad"]
        for pool in state.cache.pools.values():
            pool[:, job.slot] = torch.nan
        run(engine)
        assert bad.finish_reason == "error"
        assert "not numbers" in str(bad.error)
        assert good.tokens == greedy(backbone.model, small_prompt(3), 9)
    for _ in range(2):
        assert check(engine, serve(engine), expected, "used again") == 0


def test_a_cancelled_prompt_whose_states_are_not_numbers_leaves_a_clean_slot(
    backbone: Backbone, heads: DraftHeads
) -> None:
    engine = engine_of(backbone, heads, "sequence")
    expected = serve(engine)
    engine.submit(Request("long", small_prompt(30), SamplingParams(max_tokens=3)))
    engine.step()
    (job,) = engine._jobs
    state, _ = engine._state_and_slots()
    for pool in state.cache.pools.values():
        pool[:, job.slot] = torch.nan
    engine.step()
    engine.cancel("long")
    assert check(engine, serve(engine), expected, "used again") == 0


@pytest.mark.parametrize("captured", [False, True])
def test_a_rejected_guess_that_is_not_a_number_leaves_no_trace(
    captured: bool, backbone: Backbone, heads: DraftHeads, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = serve(engine_of(backbone, heads, "sequence", captured))
    engine = engine_of(backbone, heads, "sequence", captured)
    state, _ = engine._state_and_slots()
    poisoned = 0
    read = Accepted.to_host

    def poisoned_read(accepted: Accepted) -> list[Outcome]:
        """As if the pass had written it: all rows behind the accepted ones, in each slot that has any."""
        nonlocal poisoned
        outcomes = read(accepted)
        for row, outcome in enumerate(outcomes):
            slot = state.cache.slot_mapping.kv_range.slots[row]
            width = state.cache.slot_mapping.cache_rows.shape[1]
            if outcome.tokens and outcome.node < width - 1:
                behind = state.cache.lengths[slot] + len(outcome.tokens) + 1
                for pool in state.cache.pools.values():
                    pool[:, slot, :, behind:] = torch.nan
                    pool[:, slot, :, 0] = torch.nan
                outcomes[row] = replace(outcome, finite=False)
                poisoned += 1
        return outcomes

    monkeypatch.setattr(Accepted, "to_host", poisoned_read)
    assert check(engine, serve(engine), expected, "poisoned") == 0
    assert poisoned > 5
    monkeypatch.undo()
    assert check(engine, serve(engine), expected, "used again") == 0


def test_an_exchange_of_slots_that_breaks_off_ends_those_two(
    backbone: Backbone, heads: DraftHeads, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = serve(engine_of(backbone, heads, "sequence"))
    engine = engine_of(backbone, heads, "sequence")
    state, slots = engine._state_and_slots()
    moved: list[int] = []
    spoilt: list[int] = []
    spoil = slots.mark_dirty

    def broken(one: int, other: int) -> None:
        state.cache.swap(one, other)
        moved[:] = one, other
        spoilt.clear()
        raise ValueError("broken off")

    def noted(slot: int) -> None:
        spoil(slot)
        spoilt.append(slot)

    monkeypatch.setattr(state, "swap", broken)
    monkeypatch.setattr(slots, "mark_dirty", noted)
    assert 1 <= check(engine, serve(engine), expected, "exchange") <= 2
    assert set(moved) <= set(spoilt)  # what lay in the free one can't be begun with either
    monkeypatch.undo()
    assert check(engine, serve(engine), expected, "used again") == 0


def test_a_request_that_no_room_can_be_found_for_ends_alone(
    backbone: Backbone, heads: DraftHeads, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = serve(engine_of(backbone, heads, "sequence"))
    engine = engine_of(backbone, heads, "sequence")
    _, slots = engine._state_and_slots()
    take, refused = slots.acquire, small_prompt(6, seed=7)

    def broken(prompt: Sequence[int], salt: str = "") -> tuple[int, int]:
        if prompt == refused:
            raise ValueError("broken")
        return take(prompt, salt)

    monkeypatch.setattr(slots, "acquire", broken)
    marked = engine.submit(Request("marked", refused, SamplingParams(max_tokens=3)))
    assert check(engine, serve(engine), expected, "finding room") == 0
    assert marked.finish_reason == "error"
    assert "finding room for it failed" in str(marked.error)


def test_heads_whose_rows_are_not_numbers_leave_a_clean_slot(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(backbone, random_hydra_plus_plus_heads(backbone), "static")
    expected = serve(engine)
    state, _ = engine._state_and_slots()
    assert state.drafter is not None
    drafter, append = state.drafter, state.drafter.append

    def broken(rows: tuple[int, ...], *args: Any) -> None:
        append(rows, *args)
        drafter.states[list(rows)] = torch.nan

    monkeypatch.setattr(drafter, "append", broken)
    assert check(engine, serve(engine), expected, "heads") == 0
    assert engine.cached_prefixes == []  # whoever is next finds slots that are cleared
    monkeypatch.undo()
    assert check(engine, serve(engine), expected, "used again") == 0


def test_a_pass_reports_states_that_are_not_numbers(backbone: Backbone, heads: DraftHeads) -> None:
    hidden = torch.zeros(3, 4, backbone.hidden_size)
    hidden[1, 3, 5] = torch.nan
    hidden[2, 0, 0] = torch.inf
    trees = TreeBatch.of([TREES["chain"]] * 3)
    accepted = accept_greedy(torch.zeros(3, 4, dtype=torch.int64), torch.zeros(3, 4, SMALL_VOCAB), trees)
    assert [outcome.finite for outcome in accepted.with_finite_check(hidden).to_host()] == [True, False, False]


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


def test_steps_after_one_that_was_too_large_are_plain_and_teach_nothing_wrong(
    backbone: Backbone, heads: DraftHeads, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(backbone, heads, "dynamic")
    params = SamplingParams(temperature=0.0, max_tokens=30)
    expected = greedy(backbone.model, small_prompt(5), 30)
    done = engine.submit(Request("one", small_prompt(5), params))
    while len(done.tokens) < 3:
        engine.step()
    (job,) = engine._jobs
    assert job.running is not None
    with FaultAt(0, torch.OutOfMemoryError("CUDA out of memory")):
        engine.step()
    assert job.running.policy_state.expected is None
    shift = job.running.policy_state.shift
    before = len(job.running.steps)
    run(engine)
    assert done.tokens == expected
    assert {step.topology.nodes for step in job.running.steps[before:]} == {0}
    assert job.running.policy_state.shift == shift
    monkeypatch.setattr(step_retry, "STEPS_ALONE", 2)
    again = engine_of(backbone, heads, "static")
    done = again.submit(Request("one", small_prompt(5), params))
    with FaultAt(200, torch.OutOfMemoryError("CUDA out of memory")):
        run(again)
    assert done.tokens == expected
    assert [step.topology.nodes for step in done.steps].count(0) == 2  # then trees are tried again


def test_a_probe_that_runs_out_of_memory_says_nothing_of_the_model(
    backbone: Backbone, heads: DraftHeads, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = serve(engine_of(backbone, heads, "sequence"))
    engine = engine_of(backbone, heads, "sequence")
    monkeypatch.setattr(Sampler, "process_logits", broken_sampler("process_logits", ValueError("broken")))
    full = torch.OutOfMemoryError("CUDA out of memory")
    state, _ = engine._state_and_slots()
    monkeypatch.setattr(state, "prefill", lambda *_: (_ for _ in ()).throw(full))
    marked = engine.submit(Request("marked", small_prompt(5, seed=9), MARKED.model_copy(update={"stop": []})))
    done = serve(engine)
    assert marked.finish_reason == "error"
    assert check(engine, done, expected, "probe") == 0


def test_parts_that_read_what_could_not_be_captured_are_not_captured(backbone: Backbone, heads: DraftHeads) -> None:
    class Small(Taped):
        """Has no memory for the pass over the model."""

        def capture(self, work: Callable[[], tuple[torch.Tensor, ...]]) -> CapturedGraph:
            recording = super().capture(work)
            if any(output.shape[-1] == backbone.hidden_size for output in recording.outputs):
                raise torch.OutOfMemoryError("CUDA out of memory")
            return recording

    engine = engine_of(backbone, heads, "static")
    graphs = engine._state_and_slots()[0].graphs = Graphs(Small())
    done = engine.submit(Request("one", small_prompt(5), SamplingParams(temperature=0.0, max_tokens=24)))
    run(engine)
    assert done.tokens == greedy(backbone.model, small_prompt(5), 24)
    plain = engine_of(backbone, heads, "static")
    right = plain.submit(Request("one", small_prompt(5), SamplingParams(temperature=0.0, max_tokens=24)))
    run(plain)
    assert [step.gained for step in done.steps] == [step.gained for step in right.steps]
    assert graphs.captures > 0  # heads fill trees in a graph
    assert graphs.is_steady


def test_a_capture_that_runs_out_of_memory_leaves_graphs_on(backbone: Backbone, heads: DraftHeads) -> None:
    expected = serve(engine_of(backbone, heads, "sequence", captured=True))
    engine = engine_of(backbone, heads, "sequence")

    class Small(Taped):
        failed = 0

        def capture(self, work: Callable[[], tuple[torch.Tensor, ...]]) -> CapturedGraph:
            if self.failed < 3:
                self.failed += 1
                raise RuntimeError("CUDA error: out of memory")
            return super().capture(work)

    graphs = engine._state_and_slots()[0].graphs = Graphs(Small())
    assert check(engine, serve(engine), expected, "capture") == 0
    assert graphs.disabled_reason is None
    assert graphs.active
    assert graphs.captures > 0
    assert len(graphs._too_large) == 3


def test_a_broken_model_ends_the_engine(backbone: Backbone, heads: DraftHeads, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of(backbone, heads, "sequence")
    serve(engine)

    def broken(*args: Any) -> Any:
        raise RuntimeError("the device is lost")

    monkeypatch.setattr(engine._state_and_slots()[0].backbone, "verify", broken)
    with pytest.raises(RuntimeError, match="the device is lost"):
        serve(engine)


def test_too_little_memory_on_a_cpu_is_told_from_other_faults() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**58, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("the device is lost"))
    assert not is_out_of_memory(ValueError("out of memory"))
    while_handling = RuntimeError("the capture did not end")
    while_handling.__context__ = MemoryError()
    assert is_out_of_memory(while_handling)


def test_prompts_begin_with_texts_of_the_same_salt_alone(backbone: Backbone, heads: DraftHeads) -> None:
    engine = engine_of(backbone, heads, "sequence")
    prompt, params = small_prompt(12), SamplingParams(temperature=0.0, max_tokens=2)
    reused = []
    for salt in ("alice", "bob", "alice", "", "bob"):
        done = engine.submit(Request("one", prompt, params, cache_salt=salt))
        run(engine)
        reused.append(done.reused_tokens)
        assert done.tokens == greedy(backbone.model, prompt, 2)
    assert reused == [0, 0, 11, 0, 11]
