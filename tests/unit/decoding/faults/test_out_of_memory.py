"""Steps that run out of memory: smaller steps follow, and no other error counts as it."""

from __future__ import annotations

import pytest
import torch

from entmtp.decoding import step_retry
from entmtp.decoding.faults import is_out_of_memory
from entmtp.decoding.request import Request
from entmtp.decoding.sampling import Sampler
from entmtp.heads.base import DraftHeads
from entmtp.models.backbone import Backbone
from entmtp.settings import SamplingParams
from tests.helpers.fault_injection import FaultAt
from tests.helpers.faulty_engines import MARKED, broken_sampler, check, engine_of, run, serve
from tests.helpers.small_cases import small_prompt
from tests.helpers.tiny_models import greedy


def test_steps_after_one_that_was_too_large_are_plain_and_teach_nothing_wrong(
    backbone: Backbone, heads: DraftHeads, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(backbone, heads, "dynamic")
    params = SamplingParams(temperature=0.0, max_tokens=30)
    expected = greedy(backbone.model, small_prompt(5), 30)
    done = engine.submit(Request("one", small_prompt(5), params))
    while len(done.tokens) < 3:
        engine.step()
    (sequence,) = engine.scheduler.running
    with FaultAt(0, torch.OutOfMemoryError("CUDA out of memory")):
        engine.step()
    assert sequence.policy_state.expected is None
    log_odds = sequence.policy_state.log_odds
    before = len(sequence.completion.steps)
    run(engine)
    assert done.tokens == expected
    assert {step.topology.nodes for step in sequence.completion.steps[before:]} == {0}
    assert sequence.policy_state.log_odds == log_odds
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
    state = engine.runner.state
    monkeypatch.setattr(state, "prefill", lambda *_: (_ for _ in ()).throw(full))
    marked = engine.submit(Request("marked", small_prompt(5, seed=9), MARKED.model_copy(update={"stop": []})))
    done = serve(engine)
    assert marked.finish_reason == "error"
    assert check(engine, done, expected, "probe") == 0


def test_too_little_memory_on_a_cpu_is_distinguished_from_other_faults() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**58, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("the device is lost"))
    assert not is_out_of_memory(ValueError("out of memory"))
    while_handling = RuntimeError("the capture did not end")
    while_handling.__context__ = MemoryError()
    assert is_out_of_memory(while_handling)
