"""Words that an answer never contains, whatever the trees."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from entmtp.decoding import engine as engines
from entmtp.decoding.bad_words import Word, forbid, word_tokens
from entmtp.decoding.engine import Engine
from entmtp.decoding.request import InvalidRequestError, Request
from entmtp.heads.base import DraftHeads
from entmtp.models.backbone import Backbone
from entmtp.policies.static import StaticPolicy
from entmtp.settings import EngineSettings, SamplingParams
from tests.helpers.examples import examples
from tests.helpers.small_cases import SMALL_VOCAB, small_prompt
from tests.helpers.tiny_models import CONTEXT, TREES, greedy, plain_logits
from tests.helpers.tokenizers import byte_level

WORDS = st.lists(st.lists(st.integers(0, SMALL_VOCAB - 1), min_size=1, max_size=3).map(tuple), min_size=1, max_size=4)
LONGEST = 16


def plainly(backbone: Backbone, prompt: list[int], words: list[Word]) -> list[int]:
    """Greedy text of the model run alone that takes the likeliest token that completes no word."""
    tokens: list[int] = []
    while len(tokens) < LONGEST:
        logits = plain_logits(backbone.model, [*prompt, *tokens])[-1].clone()
        for word in words:
            if tuple(tokens[len(tokens) + 1 - len(word) :]) == word[:-1] and len(tokens) + 1 >= len(word):
                logits[word[-1]] = -math.inf
        tokens.append(int(logits.argmax()))
    return tokens


@given(words=WORDS, seed=st.integers(0, 5), tree=st.sampled_from(["root", "bushy", "wide", "chain"]))
@settings(max_examples=examples(per_hundred=30), deadline=None)
def test_the_text_is_that_of_plain_decoding_without_them(
    backbone: Backbone, heads: DraftHeads, words: list[Word], seed: int, tree: str
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engines, "word_tokens", lambda *_: words)
        engine = Engine(
            backbone, heads, StaticPolicy(TREES[tree], 8), EngineSettings(slots=2, context=CONTEXT), byte_level(())
        )
        params = SamplingParams(temperature=0.0, max_tokens=LONGEST, bad_words=["x"])
        done = engine.submit(Request("r", small_prompt(5, seed), params))
        patch.setattr(engines, "word_tokens", lambda *_: [])
        free = engine.submit(Request("free", small_prompt(5, seed), params.model_copy(update={"bad_words": []})))
        while not engine.idle:
            engine.step()
    assert done.tokens == plainly(backbone, small_prompt(5, seed), words)
    assert len(free.tokens) == LONGEST


@pytest.mark.parametrize("tree", ["root", "bushy"])
def test_a_word_may_have_its_tokens_in_several_steps(
    backbone: Backbone, heads: DraftHeads, tree: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = small_prompt(5)
    words: list[Word] = [tuple(greedy(backbone.model, prompt, LONGEST)[at : at + 4]) for at in (2, 7)]
    monkeypatch.setattr(engines, "word_tokens", lambda *_: words)
    sizes = EngineSettings(slots=1, context=CONTEXT)
    engine = Engine(backbone, heads, StaticPolicy(TREES[tree], 8), sizes, byte_level(()))
    done = engine.submit(Request("r", prompt, SamplingParams(temperature=0.0, max_tokens=LONGEST, bad_words=["x"])))
    while not engine.idle:
        engine.step()
    assert done.tokens == plainly(backbone, prompt, words) != greedy(backbone.model, prompt, LONGEST)


def test_only_the_last_token_after_the_others_is_masked() -> None:
    masked = forbid(torch.zeros(3, 5), [(4,), (1, 2, 3)], [[1, 2], [2], []])
    expected = torch.zeros(3, 5)
    expected[:, 4] = expected[0, 3] = -math.inf
    assert torch.equal(masked, expected)


def test_a_word_is_forbidden_at_a_texts_begin_and_after_a_space() -> None:
    tokenizer = byte_level(())
    assert word_tokens(tokenizer, ["ab", " ab", "c"]) == [
        tuple(tokenizer.encode(text).ids) for text in ("ab", " ab", "c", " c")
    ]


def test_an_engine_without_a_tokenizer_says_so(backbone: Backbone) -> None:
    engine = Engine(backbone, None, StaticPolicy(TREES["root"], 8), EngineSettings(slots=1, context=CONTEXT))
    with pytest.raises(InvalidRequestError, match="bad_words: this engine has no tokenizer"):
        engine.submit(Request("r", [1], SamplingParams(bad_words=["x"], max_tokens=5)))
