"""The log-likelihood of a text by one forward pass equals that of one token after another."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

from entmtp.evaluation.run.likelihood import TextLikelihood
from tests.helpers.examples import examples
from tests.helpers.tiny_models import SUPPORTED, VOCAB, greedy, plain_logits, random_tokens, tiny_model

MODEL = tiny_model("llama")
TOKENS = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=12)


def token_by_token(model: PreTrainedModel, prompt: list[int], text: list[int]) -> float:
    found = [
        plain_logits(model, [*prompt, *text[:at]])[-1].double().log_softmax(-1)[token].item()
        for at, token in enumerate(text)
    ]
    return sum(found) / len(found)


@given(prompt=TOKENS, text=TOKENS)
@settings(max_examples=examples(per_hundred=25))
def test_one_pass_gives_the_mean_of_each_tokens_own_log_probability(prompt: list[int], text: list[int]) -> None:
    found = TextLikelihood(MODEL, prompt)(text)
    assert found == pytest.approx(token_by_token(MODEL, prompt, text), abs=1e-4)
    assert found < 0


@pytest.mark.parametrize("model_type", SUPPORTED)
def test_any_architectures_texts_are_scored(model_type: str) -> None:
    model = tiny_model(model_type)
    prompt, text = random_tokens(9), random_tokens(6, seed=1)
    assert TextLikelihood(model, prompt)(text) == pytest.approx(token_by_token(model, prompt, text), abs=1e-4)


def test_the_models_own_text_is_likelier_than_another() -> None:
    prompt = random_tokens(9)
    likelihood = TextLikelihood(MODEL, prompt)
    assert likelihood(greedy(MODEL, prompt, 20)) > likelihood(random_tokens(20, seed=5)) + 0.1


def test_a_text_is_passed_once() -> None:
    passes: list[int] = []
    hook = MODEL.register_forward_pre_hook(lambda module, args: passes.append(args[0].shape[1]))
    try:
        likelihood = TextLikelihood(MODEL, [1, 2, 3])
        first = [likelihood(text) for text in ([4, 5], [4, 6], [4, 5], (4, 5))]
        assert first[0] == first[2] == first[3] != first[1]
        assert passes == [4, 4]
        TextLikelihood(MODEL, [1, 2])([4, 5])
        assert passes == [4, 4, 3], "another prompt is another score"
    finally:
        hook.remove()


def test_scores_are_float32_whatever_the_model_computes_in() -> None:
    half = tiny_model("llama", dtype=torch.bfloat16)
    prompt, text = random_tokens(9), random_tokens(6, seed=1)
    logits = plain_logits(half, [*prompt, *text[:-1]])[len(prompt) - 1 :].float().log_softmax(-1)
    wanted = logits[torch.arange(len(text)), torch.tensor(text)].mean().item()
    assert abs(TextLikelihood(half, prompt)(text) - wanted) < 1e-6
