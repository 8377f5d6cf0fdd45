"""Log-probabilities of prompts: those of the model run alone, whatever the parts in which a prompt is read."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from entmtp.decoding import scoring
from entmtp.decoding.async_engine import AsyncEngine
from entmtp.decoding.engine import Engine
from entmtp.decoding.outputs import Completion, RequestOutput
from entmtp.decoding.request import Request
from entmtp.heads.base import DraftHeads
from entmtp.models.backbone import LOGITS_CHUNK, Backbone
from entmtp.policies.static import StaticPolicy
from entmtp.settings import EngineSettings, SamplingParams
from tests.helpers.small_cases import small_prompt
from tests.helpers.tiny_models import CONTEXT, TREES, greedy, plain_logits


def engine_of(backbone: Backbone, heads: DraftHeads | None, **changes: Any) -> Engine:
    sizes = {"slots": 2, "context": CONTEXT, "prefill_tokens": 7} | changes
    return Engine(backbone, heads, StaticPolicy(TREES["bushy"], 8), EngineSettings.parse(**sizes))


def scored(engine: Engine, prompt: list[int], top: int = 0, tokens: int = 0, **fields: Any) -> Completion:
    params = SamplingParams(temperature=0.0, max_tokens=tokens, prompt_logprobs=top)
    done = engine.submit(Request("s", prompt, params, **fields))
    while not engine.idle:
        engine.step()
    assert done.finish_reason == "length"
    return done


def expected(backbone: Backbone, prompt: list[int]) -> torch.Tensor:
    return plain_logits(backbone.model, prompt).log_softmax(-1)


@given(st.integers(1, 60), st.integers(1, 40))
def test_they_are_the_models_own_in_any_parts(backbone: Backbone, heads: DraftHeads, length: int, part: int) -> None:
    prompt = small_prompt(length, seed=length)
    done = scored(engine_of(backbone, heads, prefill_tokens=part), prompt, top=2)
    wanted = expected(backbone, prompt)
    assert len(done.prompt_logprobs) == length - 1
    for at, one in enumerate(done.prompt_logprobs):
        assert one.chosen == pytest.approx(float(wanted[at, prompt[at + 1]]), abs=1e-5)
        assert one.rank == 1 + int((wanted[at] > wanted[at, prompt[at + 1]]).sum())
        assert [logprob for _, logprob in one.top] == pytest.approx(wanted[at].topk(2).values.tolist(), abs=1e-5)
    assert done.tokens == []
    assert done.steps == []


def test_a_scored_prompt_is_answered_as_any_other(backbone: Backbone, heads: DraftHeads) -> None:
    prompt = small_prompt(20)
    done = scored(engine_of(backbone, heads), prompt, tokens=12)
    assert len(done.prompt_logprobs) == 19
    assert done.tokens == greedy(backbone.model, prompt, 12)


def test_a_cached_prefix_takes_none_of_them_away(backbone: Backbone, heads: DraftHeads) -> None:
    engine, prompt = engine_of(backbone, heads), small_prompt(30)
    first = scored(engine, prompt)
    again = scored(engine, prompt)
    assert again.reused_tokens == 0
    assert [one.chosen for one in again.prompt_logprobs] == pytest.approx(
        [one.chosen for one in first.prompt_logprobs], abs=1e-5
    )
    tail = scored(engine, [*prompt, 1, 2], scored_from=30)
    assert tail.reused_tokens == 29
    wanted = expected(backbone, [*prompt, 1, 2])
    assert [one.chosen for one in tail.prompt_logprobs] == pytest.approx(
        [float(wanted[29, 1]), float(wanted[30, 2])], abs=1e-5
    )


def test_logits_of_a_whole_prompt_are_never_in_memory(
    backbone: Backbone, heads: DraftHeads, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    plain = backbone.logits

    def seen(hidden: torch.Tensor) -> torch.Tensor:
        sizes.append(len(hidden.reshape(-1, hidden.shape[-1])))
        return plain(hidden)

    monkeypatch.setattr(backbone, "logits", seen)
    scored(engine_of(backbone, heads, prefill_tokens=100), small_prompt(100))
    assert max(sizes) == LOGITS_CHUNK
    assert sum(sizes) == 99


def test_a_score_that_fails_ends_its_own_request(
    backbone: Backbone, heads: DraftHeads, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise ValueError("no score")

    monkeypatch.setattr(scoring, "_score", broken)
    engine = engine_of(backbone, heads)
    good = engine.submit(Request("good", small_prompt(3), SamplingParams(temperature=0.0, max_tokens=5)))
    bad = engine.submit(Request("bad", small_prompt(4), SamplingParams(max_tokens=0, prompt_logprobs=0)))
    while not engine.idle:
        engine.step()
    assert good.tokens == greedy(backbone.model, small_prompt(3), 5)
    assert bad.finish_reason == "error"
    assert "reading its prompt failed (ValueError)" in str(bad.error)


def test_a_prompt_without_numbers_is_not_scored(
    backbone: Backbone, heads: DraftHeads, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(backbone, heads)
    monkeypatch.setattr(engine.runner.state, "is_finite", lambda _: False)
    bad = engine.submit(Request("bad", small_prompt(4), SamplingParams(max_tokens=0)))
    while not engine.idle:
        engine.step()
    assert bad.finish_reason == "error"
    assert "not numbers" in str(bad.error)


def test_they_come_with_the_first_output(backbone: Backbone, heads: DraftHeads) -> None:
    async def scene() -> list[RequestOutput]:
        async with AsyncEngine(lambda: engine_of(backbone, heads)) as served:
            params = SamplingParams(temperature=0.0, max_tokens=9, prompt_logprobs=0)
            return [output async for output in served.generate(Request("r", small_prompt(9), params))]

    first, *rest = asyncio.run(scene())
    assert len(first.prompt_logprobs) == 8
    assert rest
    assert not any(output.prompt_logprobs for output in rest)
