"""An error of one request ends it alone; a broken model ends the engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models

from entmtp.decoding import engine as engine_module
from entmtp.decoding import runner as runner_module
from entmtp.decoding import step as step_module
from entmtp.decoding.detokenizer import Detokenizer
from entmtp.decoding.outputs import logprobs_of
from entmtp.decoding.request import Request
from entmtp.decoding.sampling import Sampler
from entmtp.decoding.text import TextStream
from entmtp.heads.base import DraftHeads
from entmtp.models.backbone import Backbone
from entmtp.settings import SamplingParams
from tests.helpers.faulty_engines import ERRORS, MARKED, broken_sampler, check, engine_of, serve
from tests.helpers.small_cases import SMALL_VOCAB, small_prompt


class BrokenText:
    """Fails for the faulty request; the text of others is real."""

    def __new__(cls, detokenizer: Detokenizer, stop: Sequence[str], *args: Any, **options: Any) -> Any:
        return super().__new__(cls) if list(stop) == MARKED.stop else TextStream(detokenizer, stop, *args, **options)

    stopped = None

    def push(self, token: int) -> str:
        raise Exception("Invalid prefix encountered while decoding stream")


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
    "first logprobs": (runner_module, "logprobs_of", broken_logprobs),
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


def test_an_exchange_of_slots_that_breaks_off_ends_those_two(
    backbone: Backbone, heads: DraftHeads, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = serve(engine_of(backbone, heads, "sequence"))
    engine = engine_of(backbone, heads, "sequence")
    state, slots = engine.runner.state, engine.scheduler.slots
    moved: list[int] = []
    dirty: list[int] = []
    mark_dirty = slots.mark_dirty

    def broken(one: int, other: int) -> None:
        state.cache.swap(one, other)
        moved[:] = one, other
        dirty.clear()
        raise ValueError("broken off")

    def noted(slot: int) -> None:
        mark_dirty(slot)
        dirty.append(slot)

    monkeypatch.setattr(state, "swap", broken)
    monkeypatch.setattr(slots, "mark_dirty", noted)
    assert 1 <= check(engine, serve(engine), expected, "exchange") <= 2
    assert set(moved) <= set(dirty)  # the prefix in the free one can't be reused either
    monkeypatch.undo()
    assert check(engine, serve(engine), expected, "used again") == 0


def test_a_request_that_no_room_can_be_found_for_ends_alone(
    backbone: Backbone, heads: DraftHeads, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = serve(engine_of(backbone, heads, "sequence"))
    engine = engine_of(backbone, heads, "sequence")
    slots = engine.scheduler.slots
    acquire, rejected = slots.acquire, small_prompt(6, seed=7)

    def broken(prompt: Sequence[int], salt: str = "", most: int | None = None) -> tuple[int, int]:
        if prompt == rejected:
            raise ValueError("broken")
        return acquire(prompt, salt, most)

    monkeypatch.setattr(slots, "acquire", broken)
    marked = engine.submit(Request("marked", rejected, SamplingParams(max_tokens=3)))
    assert check(engine, serve(engine), expected, "finding room") == 0
    assert marked.finish_reason == "error"
    assert "assigning it a slot failed" in str(marked.error)


def test_a_broken_model_ends_the_engine(backbone: Backbone, heads: DraftHeads, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of(backbone, heads, "sequence")
    serve(engine)

    def broken(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("the device is lost")

    monkeypatch.setattr(engine.runner.state.backbone, "verify", broken)
    with pytest.raises(RuntimeError, match="the device is lost"):
        serve(engine)
