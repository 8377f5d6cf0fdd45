"""Answers in batches, for scripts."""

from __future__ import annotations

import pytest

from entmtp.decoding import scheduler
from entmtp.decoding.output_processor import make_output
from entmtp.decoding.outputs import RequestOutput
from entmtp.decoding.sequence import Sequence
from entmtp.errors import EntMTPError
from entmtp.llm import LLM, EngineSettings, SamplingParams
from tests.helpers.saved_project import Saved, save_project
from tests.helpers.tiny_models import greedy

SETTINGS = EngineSettings(slots=3, context=128)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    return save_project(tmp_path_factory.mktemp("llm"))


@pytest.fixture(scope="module")
def llm(saved: Saved) -> LLM:
    return LLM(
        str(saved.model),
        policy="entmtp-dynamic",
        heads=str(saved.heads("hydra")),
        bank=saved.banks / "gsm8k-hydra.json",
        settings=SETTINGS,
        say=lambda text: None,
    )


def test_answers_come_in_the_order_of_the_prompts(llm: LLM) -> None:
    prompts = [[5 + at, 6, 7] for at in range(8)]
    params = [SamplingParams(temperature=0, max_tokens=4 + at, ignore_eos=True) for at in range(8)]
    for prompt, own, answer in zip(prompts, params, llm.generate(prompts, params), strict=True):
        assert answer.tokens == greedy(llm.engine.backbone.model, prompt, own.max_tokens)
        assert answer.finish_reason == "length"
        assert answer.text == str(llm.tokenizer.decode(answer.tokens, skip_special_tokens=True))


def test_a_text_is_one_prompt(llm: LLM) -> None:
    (answer,) = llm.generate("Hello", SamplingParams(max_tokens=5, seed=1))
    assert len(answer.tokens) <= 5


def test_several_answers_to_one_prompt_differ_and_come_again_with_the_seed(llm: LLM) -> None:
    params = SamplingParams(max_tokens=8, seed=4, ignore_eos=True)
    answers = [answer.tokens for answer in llm.generate([[5, 6], [7]], params, n=3)]
    assert len(answers) == 6
    assert len({tuple(tokens) for tokens in answers[:3]}) == 3
    assert answers == [answer.tokens for answer in llm.generate([[5, 6], [7]], params, n=3)]


def test_equal_prompts_of_one_call_get_texts_of_their_own(llm: LLM) -> None:
    for params in (
        SamplingParams(max_tokens=8, ignore_eos=True),
        SamplingParams(max_tokens=8, seed=4, ignore_eos=True),
    ):
        answers = llm.generate([[5, 6]] * 8, params)
        assert len({tuple(answer.tokens) for answer in answers}) == 8


def test_a_seed_draws_for_a_prompt_alone_what_it_draws_for_the_first_of_several(llm: LLM) -> None:
    params = SamplingParams(max_tokens=8, seed=4, ignore_eos=True)
    (alone,) = llm.generate([[5, 6]], params)
    several = [answer.tokens for answer in llm.generate([[5, 6]] * 3, params)]
    assert several[0] == alone.tokens
    assert several == [answer.tokens for answer in llm.generate([[5, 6]] * 3, params)]
    given_each = [answer.tokens for answer in llm.generate([[5, 6]] * 3, [params] * 3)]
    assert given_each == [alone.tokens] * 3


def test_a_stop_string_ends_an_answer_and_is_left_out(llm: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=30, ignore_eos=True)
    (whole,) = llm.generate([[5, 6, 7]], params)
    stop = whole.text[3:5]
    (answer,) = llm.generate([[5, 6, 7]], params.model_copy(update={"stop": [stop]}))
    assert answer.finish_reason == "stop"
    assert answer.text == whole.text[: whole.text.index(stop)]
    assert whole.tokens[: len(answer.tokens)] == answer.tokens


def test_the_prompt_that_can_not_be_served_is_named(llm: LLM) -> None:
    with pytest.raises(EntMTPError, match=r"prompts\[1\]: prompt: it has no tokens"):
        llm.generate([[5], []], SamplingParams(max_tokens=5))
    with pytest.raises(EntMTPError, match=r"prompts\[0\]: ' ' is empty"):
        llm.generate([" "])
    with pytest.raises(EntMTPError, match="params: 1 are given for 2 prompts"):
        llm.generate([[5], [6]], [SamplingParams()])
    assert llm.engine.idle


def test_an_answer_that_fails_comes_back_with_its_error_next_to_complete_ones(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail_one(sequence: Sequence) -> RequestOutput:
        if sequence.request.id == "1.0":
            raise ValueError("no text")
        return make_output(sequence)

    monkeypatch.setattr(scheduler, "make_output", fail_one)
    answers = llm.generate([[5], [6], [7]], SamplingParams(max_tokens=4, ignore_eos=True))
    assert [answer.finish_reason for answer in answers] == ["length", "error", "length"]
    assert "making its text failed (ValueError)" in (answers[1].error or "")
    assert [len(answer.tokens) for answer in answers[::2]] == [4, 4]


def test_an_unknown_policy_is_reported(saved: Saved) -> None:
    with pytest.raises(EntMTPError, match="method: 'best' is unknown"):
        LLM(str(saved.model), policy="best")
