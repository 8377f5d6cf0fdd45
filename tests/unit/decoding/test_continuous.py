"""Requests that join and leave between steps."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from entmtp.decoding import step_retry
from entmtp.decoding.engine import Engine
from entmtp.decoding.outputs import RequestOutput
from entmtp.decoding.request import Request
from entmtp.decoding.scheduler import EngineFullError
from entmtp.decoding.sequence import Sequence
from entmtp.decoding.state import DecodingState
from entmtp.decoding.step import decode_step
from entmtp.errors import EntMTPError
from entmtp.heads.base import DraftHeads
from entmtp.models.backbone import Backbone
from entmtp.policies.base import Policy
from entmtp.policies.static import SequencePolicy
from entmtp.settings import EngineSettings, SamplingParams
from tests.helpers.arrivals import come_and_go
from tests.helpers.examples import examples
from tests.helpers.small_cases import SMALL_VOCAB, small_dynamic_policy, small_prompt
from tests.helpers.tiny_models import CONTEXT, TREES, greedy

POLICIES: dict[str, Policy] = {
    "sequence": SequencePolicy([TREES["bushy"], TREES["root"], TREES["chain"], TREES["wide"]], 8),
    "dynamic": small_dynamic_policy(),
}
GREEDY = SamplingParams(temperature=0.0, max_tokens=12)


def engine_of(backbone: Backbone, heads: DraftHeads, policy: str = "sequence", **changes: int | bool) -> Engine:
    sizes = {"slots": 4, "context": CONTEXT, "prefill_tokens": 7} | changes
    return Engine(backbone, heads, POLICIES[policy], EngineSettings.parse(**sizes))


def run(engine: Engine) -> list[RequestOutput]:
    outputs = []
    while not engine.idle:
        outputs += engine.step()
    return outputs


@given(st.randoms(use_true_random=False), st.sampled_from(list(POLICIES)), st.booleans())
@settings(max_examples=examples(per_hundred=15))
def test_sixteen_requests_that_come_and_go_write_what_each_writes_alone(
    backbone: Backbone, heads: DraftHeads, rng: random.Random, policy: str, reuse: bool
) -> None:
    engine = engine_of(backbone, heads, policy, prefix_reuse=reuse)
    shared = small_prompt(6, seed=50)
    prompts = [
        [*(shared if rng.random() < 0.5 else []), *small_prompt(rng.randint(1, 25), seed=at)] for at in range(16)
    ]
    lengths = [rng.randint(1, 20) for _ in prompts]
    cancelled = {at for at in range(16) if rng.random() < 0.25}

    def cancel_now_and_then() -> None:
        if rng.random() < 0.2:
            engine.cancel(str(rng.choice(sorted(cancelled))) if cancelled else "nobody")

    done = come_and_go(engine, prompts, lengths, rng, cancel_now_and_then)
    for at, completion in done.items():
        expected = greedy(backbone.model, prompts[at], lengths[at])
        if completion.finish_reason == "cancelled":
            assert at in cancelled
            assert completion.tokens == expected[: len(completion.tokens)]
        else:
            assert completion.finish_reason == "length"
            assert completion.tokens == expected
    assert (engine.running, engine.waiting, engine.statistics.cache_tokens) == (0, 0, 0)


def test_first_come_first_served(backbone: Backbone, heads: DraftHeads) -> None:
    engine = engine_of(backbone, heads, slots=1)
    for name in "abc":
        engine.submit(Request(name, small_prompt(3), GREEDY))
    ended = [each.id for each in run(engine) if each.finish_reason]
    assert ended == ["a", "b", "c"]


def test_a_long_prompt_does_not_keep_the_others_waiting(backbone: Backbone, heads: DraftHeads) -> None:
    engine = engine_of(backbone, heads, prefill_tokens=5)
    engine.submit(Request("short", small_prompt(3), GREEDY))
    engine.step()
    engine.submit(Request("long", small_prompt(60), GREEDY))
    first = [each.id for _ in range(8) for each in engine.step()]
    assert first.count("short") == 8 or first.count("short") >= 3
    assert "long" not in first
    run(engine)


def test_progress_adds_up_to_the_completion(backbone: Backbone, heads: DraftHeads) -> None:
    engine = engine_of(backbone, heads)
    params = SamplingParams(temperature=0.9, seed=3, max_tokens=20, logprobs=2)
    done = engine.submit(Request("one", small_prompt(4), params))
    progress = run(engine)
    assert [token for each in progress for token in each.tokens] == done.tokens
    assert [one for each in progress for one in each.logprobs] == done.logprobs
    assert len(done.tokens) == 20
    assert 0 < done.waiting_seconds + done.prefill_seconds < done.first_token_seconds <= done.seconds
    assert done.accepted == sum(done.accepted_by_depth)
    total = RequestOutput("one")
    for each in progress:
        total.add(each)
    assert (total.tokens, total.text, total.logprobs) == (done.tokens, done.text, done.logprobs)
    assert total.finish_reason == done.finish_reason == "length"
    assert [each.stats is not None for each in progress] == [*[False] * (len(progress) - 1), True]
    assert total.stats == done.stats
    assert (total.stats.steps, total.stats.drafted) == (len(done.steps), done.drafted)
    assert sum(done.tree_shares.values()) == pytest.approx(1)


def test_logprobs_are_the_models_own(backbone: Backbone, heads: DraftHeads) -> None:
    engine = engine_of(backbone, heads)
    prompt = small_prompt(4)
    done = engine.submit(Request("one", prompt, SamplingParams(seed=3, max_tokens=15, top_k=3, logprobs=3)))
    run(engine)
    with torch.inference_mode():
        logits = backbone.model(torch.tensor([[*prompt, *done.tokens]])).logits[0, len(prompt) - 1 : -1]
    expected = logits.log_softmax(-1)
    for row, token, reported in zip(expected, done.tokens, done.logprobs, strict=True):
        assert reported.chosen == pytest.approx(float(row[token]), abs=1e-4)
        assert [logprob for _, logprob in reported.top] == pytest.approx(row.topk(3).values.tolist(), abs=1e-4)


def test_it_ends_with_a_stop_token_and_not_before_its_time(backbone: Backbone, heads: DraftHeads) -> None:
    engine = engine_of(backbone, heads)
    text = greedy(backbone.model, small_prompt(4), 30)
    stop = text[5]
    early = engine.submit(
        Request("early", small_prompt(4), SamplingParams(temperature=0, max_tokens=30, stop_token_ids=[stop]))
    )
    late = engine.submit(
        Request(
            "late", small_prompt(4), SamplingParams(temperature=0, max_tokens=30, stop_token_ids=[stop], min_tokens=12)
        )
    )
    run(engine)
    assert early.tokens == text[: text.index(stop) + 1]
    assert early.finish_reason == "stop"
    assert stop not in late.tokens[:11]
    assert len(late.tokens) >= 12


def test_a_prompt_that_was_read_before_is_not_read_again(backbone: Backbone, heads: DraftHeads) -> None:
    engine = engine_of(backbone, heads)
    first = engine.submit(Request("one", small_prompt(20), GREEDY))
    run(engine)
    again = engine.submit(Request("two", [*small_prompt(20), *first.tokens[:5], 1], GREEDY))
    run(engine)
    assert first.reused_tokens == 0
    assert again.reused_tokens == 25
    assert again.tokens == greedy(backbone.model, [*small_prompt(20), *first.tokens[:5], 1], 12)


@pytest.mark.parametrize(
    ("prompt", "params", "message"),
    [
        ([], {}, "^prompt: "),
        ([1, SMALL_VOCAB], {}, f"^prompt: token {SMALL_VOCAB} .* {SMALL_VOCAB};"),
        ([1], {"logit_bias": {99: 1.0}}, "^logit_bias: token 99 "),
        ([1], {"stop_token_ids": [99]}, "^stop_token_ids: token 99 "),
        ([1], {"max_tokens": CONTEXT}, f"^prompt: 1 tokens and {CONTEXT} .* context of {CONTEXT};"),
        ([1], {"max_tokens": 3, "min_tokens": 4}, "^min_tokens: 4 .* max_tokens 3;"),
        ([1], {"stop": ["x"]}, "stop: this engine has no tokenizer"),
    ],
)
def test_an_invalid_request_is_rejected_alone(
    prompt: list[int], params: dict[str, object], message: str, backbone: Backbone, heads: DraftHeads
) -> None:
    engine = engine_of(backbone, heads)
    engine.submit(Request("good", small_prompt(3), GREEDY))
    with pytest.raises(EntMTPError, match=message):
        engine.submit(Request("bad", prompt, SamplingParams.parse(**({"max_tokens": 5} | params))))
    assert [each.id for each in run(engine) if each.finish_reason] == ["good"]


def test_too_many_waiting_requests_are_rejected(backbone: Backbone, heads: DraftHeads) -> None:
    engine = engine_of(backbone, heads, slots=2, max_waiting=1)
    for at in range(3):
        engine.submit(Request(str(at), small_prompt(3), GREEDY))
    with pytest.raises(EngineFullError, match="wait already"):
        engine.submit(Request("3", small_prompt(3), GREEDY))
    run(engine)


def test_a_step_that_needs_too_much_memory_is_taken_one_by_one(
    backbone: Backbone, heads: DraftHeads, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(backbone, heads)
    done = {name: engine.submit(Request(name, small_prompt(3), GREEDY)) for name in "abc"}

    def small_device(state: DecodingState, policy: Policy, sequences: list[Sequence]) -> None:
        if len(sequences) > 2:
            raise torch.OutOfMemoryError("too much")
        decode_step(state, policy, sequences)

    monkeypatch.setattr(step_retry, "decode_step", small_device)
    run(engine)
    assert [done[name].finish_reason for name in "abc"] == ["length"] * 3
    assert all(one.tokens == greedy(backbone.model, small_prompt(3), 12) for one in done.values())


def test_logits_that_are_not_numbers_fail_their_own_request(
    backbone: Backbone, heads: DraftHeads, caplog: pytest.LogCaptureFixture
) -> None:
    engine = engine_of(backbone, heads)
    good = engine.submit(Request("good", small_prompt(3), GREEDY))
    bad = engine.submit(Request("bad", small_prompt(5), GREEDY))
    engine.step()
    engine.step()
    (sequence,) = [one for one in engine.scheduler.running if one.request.id == "bad"]
    for pool in engine.runner.state.cache.pools.values():
        pool[:, sequence.slot] = torch.nan
    run(engine)
    assert good.tokens == greedy(backbone.model, small_prompt(3), 12)
    assert bad.finish_reason == "error"
    assert "not numbers" in str(bad.error)
    assert "request bad" in caplog.text


def test_memory_does_not_grow_with_requests(backbone: Backbone, heads: DraftHeads) -> None:
    engine = engine_of(backbone, heads)
    state = engine.runner.state
    before = state.cache.bytes, [pool.data_ptr() for pool in state.cache.pools.values()]
    for at in range(40):
        engine.submit(Request(str(at), small_prompt(1 + at % 9, seed=at), SamplingParams(temperature=0, max_tokens=2)))
    run(engine)
    assert engine.runner.state is state
    assert before == (state.cache.bytes, [pool.data_ptr() for pool in state.cache.pools.values()])


FIELDS = {
    "max_tokens": st.integers(-3, -1),
    "min_tokens": st.just(-1),
    "temperature": st.sampled_from([-0.1, float("nan"), float("inf"), "hot"]),
    "top_k": st.sampled_from([-1, 1.5]),
    "top_p": st.sampled_from([0.0, 1.1, float("nan")]),
    "min_p": st.sampled_from([-0.1, 1.5]),
    "repetition_penalty": st.sampled_from([0.0, -1.0, 1e-133, float("inf")]),
    "presence_penalty": st.sampled_from([-2.1, 3.0]),
    "frequency_penalty": st.sampled_from([-9.0, "x"]),
    "logit_bias": st.sampled_from([{-1: 1.0}, {1: 101.0}, {1: float("nan")}, [1]]),
    "seed": st.sampled_from([-1, 2**64, 0.5]),
    "stop": st.sampled_from([[""], [1], ["x"] * 17]),
    "stop_token_ids": st.sampled_from([[-1], ["a"]]),
    "logprobs": st.sampled_from([-1, 21]),
    "acceptance": st.just("none"),
    "colour": st.just("red"),
}


@given(st.data(), st.sampled_from(sorted(FIELDS)))
def test_a_bad_parameter_is_named(data: st.DataObject, field: str) -> None:
    with pytest.raises(EntMTPError, match=f"^{field}"):
        SamplingParams.parse(**{field: data.draw(FIELDS[field])})


@pytest.mark.parametrize(
    "extreme",
    [
        {"temperature": 1e-300},
        {"temperature": 100.0, "top_k": 1},
        {"repetition_penalty": 0.01},
        {"repetition_penalty": 100.0, "presence_penalty": -2.0, "frequency_penalty": -2.0},
        {"logit_bias": {3: 100.0, 4: -100.0}, "min_p": 1.0},
        {"top_p": 1e-300},
    ],
)
def test_no_allowed_parameter_ends_the_engine(extreme: dict[str, Any], backbone: Backbone, heads: DraftHeads) -> None:
    engine = engine_of(backbone, heads)
    params = SamplingParams.parse(**({"temperature": 1.0, "seed": 1, "max_tokens": 8} | extreme))
    engine.submit(Request("extreme", small_prompt(4), params))
    engine.submit(Request("other", small_prompt(3), GREEDY))
    written: dict[str, list[int]] = {"extreme": [], "other": []}
    for progress in run(engine):
        written[progress.id] += progress.tokens
    assert len(written["extreme"]) == 8
    assert len(written["other"]) == 12


def test_statistics_say_how_the_engine_fares(backbone: Backbone, heads: DraftHeads) -> None:
    engine = engine_of(backbone, heads, slots=2)
    assert (engine.statistics.steps, engine.statistics.goodput) == (0, 0.0)
    for at in range(3):
        engine.submit(Request(str(at), small_prompt(3), GREEDY))
    engine.step()
    now = engine.statistics
    assert (now.running, now.waiting, now.steps) == (2, 1, 1)
    assert now.cache_tokens == 2 * 3 + now.tokens
    assert now.cache_capacity >= 2 * CONTEXT
    assert now.goodput > 0
    run(engine)
    assert engine.statistics.tokens >= 36


def test_prompts_begin_with_texts_of_the_same_salt_alone(backbone: Backbone, heads: DraftHeads) -> None:
    engine = engine_of(backbone, heads)
    prompt, params = small_prompt(12), SamplingParams(temperature=0.0, max_tokens=2)
    reused = []
    for salt in ("alice", "bob", "alice", "", "bob"):
        done = engine.submit(Request("one", prompt, params, cache_salt=salt))
        run(engine)
        reused.append(done.reused_tokens)
        assert done.tokens == greedy(backbone.model, prompt, 2)
    assert reused == [0, 0, 11, 0, 11]
