"""Text that is decoded token by token is the text of the whole, for every kind of tokenizer."""

from __future__ import annotations

import random

import pytest

from entmtp.decoding.detokenizer import REPLACEMENT, Detokenizer
from entmtp.decoding.incremental_decoder import IncrementalDecoder
from tests.helpers.examples import examples
from tests.helpers.tokenizers import KINDS, SPACE, ids, made, random_tokens

MANY = pytest.param(10_000, marks=pytest.mark.slow)
WHOLE = ["ctc", "text replaced", "written in Python"]
"""Decoders that edit a text as a whole, or say nothing about themselves: all text comes at the end."""

LENGTHS = [1, 2, 3, 5, 8, 13, 21, 55]


def parts(detokenizer: Detokenizer, tokens: list[int], prompt: list[int] | None = None) -> list[str]:
    decoder = IncrementalDecoder(detokenizer, prompt or [])
    return [*(decoder.push(token) for token in tokens), decoder.rest()]


class Counting(Detokenizer):
    """Counts the tokens that are decoded."""

    decoded = 0

    def decode(self, tokens: object) -> str:
        assert isinstance(tokens, list)
        self.decoded += len(tokens)
        return super().decode(tokens)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sequences", [examples(per_hundred=3000), MANY])
def test_parts_are_the_whole_for_random_tokens(kind: str, sequences: int) -> None:
    tokenizer, rng = made(kind), random.Random(0)
    detokenizer = Detokenizer(tokenizer)
    for _ in range(sequences):
        tokens = random_tokens(kind, rng, rng.choice(LENGTHS))
        assert "".join(parts(detokenizer, tokens)) == tokenizer.decode(tokens), tokens


@pytest.mark.parametrize("kind", KINDS)
def test_text_after_a_prompt_is_what_it_adds_to_the_prompts(kind: str) -> None:
    tokenizer, rng = made(kind), random.Random(1)
    detokenizer = Detokenizer(tokenizer)
    compared = 0
    for _ in range(300):
        prompt = random_tokens(kind, rng, rng.choice(LENGTHS))
        tokens = random_tokens(kind, rng, rng.choice(LENGTHS))
        before, whole = tokenizer.decode(prompt), tokenizer.decode([*prompt, *tokens])
        visible = [token for token in prompt if detokenizer.has_text(token)]
        # After bytes that make no character it is not defined whose they are.
        if before.endswith(REPLACEMENT) or (visible and detokenizer.byte(visible[-1]) is not None):
            continue
        if whole.startswith(before):
            compared += 1
            assert "".join(parts(detokenizer, tokens, prompt)) == whole[len(before) :], (prompt, tokens)
    assert compared > 50


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in WHOLE])
def test_a_token_costs_the_same_in_a_long_text(kind: str) -> None:
    detokenizer, rng = Counting(made(kind)), random.Random(2)
    pool = random_tokens(kind, rng, 50)
    for tokens in (random_tokens(kind, rng, 4000), [token for token in pool for _ in range(80)]):
        detokenizer.decoded = 0
        parts(detokenizer, tokens)
        assert detokenizer.decoded < 25 * len(tokens)


def test_the_published_tokenizers_and_the_common_decoders_are_known() -> None:
    reach = {kind: Detokenizer(made(kind)).reach for kind in KINDS}
    assert reach["Mistral's SentencePiece"] == reach["byte fallback, strip"] == reach["byte fallback"] == "bytes"
    assert reach["Mistral's Tekken"] == reach["byte level"] == "character"
    assert reach["metaspace"] == reach["wordpiece"] == reach["words"] == reach["bpe"] == "token"
    assert [kind for kind in KINDS if reach[kind] == "text"] == WHOLE


@pytest.mark.parametrize(
    ("kind", "names", "expected"),
    [
        ("byte fallback, strip", (f"{SPACE}the", "<0x0A>", "<0xE2>", f"{SPACE}a"), ["the", "", "", "�� a", ""]),
        ("byte fallback, strip", (f"{SPACE}a", "<0x0A>", "<0xF0>", "<0x9F>", "a"), ["a", "", "", "", "���a", ""]),
        ("Mistral's SentencePiece", (f"{SPACE}the", "<0x0A>", "<0xE2>", f"{SPACE}a"), ["the", "", "", "�� a", ""]),
        ("byte fallback, strip", (f"{SPACE}a", "<0xE2>", "<0x82>", "<0xAC>", "a"), ["a", "", "", "", "€a", ""]),
        ("byte fallback, strip", (f"{SPACE}a", "<0xE2>", "<0x82>"), ["a", "", "", "��"]),
        (
            "byte level",
            ("Ġthe", "ð", "Ł", "ĺ", "Ģ", "ð", "Ġthe", "ð"),
            [" the", "", "", "", "😀", "", "� the", "", "�"],
        ),
        ("byte fallback, strip", (SPACE, f"{SPACE}a", f"{SPACE}a"), ["", " a", " a", ""]),
        ("wordpiece", ("a", "##x", ".", "b"), ["a", "x", ".", " b", ""]),
        ("bpe", ("a", "ed</w>", "b"), ["a", "ed", " b", ""]),
    ],
)
def test_a_part_comes_as_soon_as_nothing_can_change_it(kind: str, names: tuple[str, ...], expected: list[str]) -> None:
    tokens = ids(made(kind), *names)
    assert parts(Detokenizer(made(kind)), tokens) == expected
    assert "".join(expected) == made(kind).decode(tokens)


@pytest.mark.parametrize("kind", ["byte fallback, strip", "Mistral's SentencePiece"])
def test_the_first_word_after_a_prompt_keeps_its_space(kind: str) -> None:
    prompt = ids(made(kind), "<s>", f"{SPACE}the", f"{SPACE}capital", f"{SPACE}is")
    answer = ids(made(kind), f"{SPACE}Paris", f"{SPACE}the", f"{SPACE}capital")
    detokenizer = Detokenizer(made(kind))
    assert parts(detokenizer, answer, prompt) == [" Paris", " the", " capital", ""]
    assert parts(detokenizer, answer) == ["Paris", " the", " capital", ""]
    assert parts(detokenizer, answer, prompt[:1]) == ["Paris", " the", " capital", ""]


@pytest.mark.parametrize(
    ("kind", "prompt", "answer", "expected"),
    [
        ("byte level", ("Ġthe", "ð", "Ł"), ("ĺ", "Ģ", "Ġthe"), "😀 the"),
        ("byte level", ("Ġthe", "ð", "Ł"), ("Ġthe",), " the"),
        ("byte level", ("Ġthe", "ð", "Ł"), ("ð", "Ġthe"), "� the"),
        ("byte fallback, strip", (f"{SPACE}the", "<0xE2>", "<0x82>"), ("<0xAC>", "a"), "€a"),
        ("byte fallback, strip", (f"{SPACE}the", "<0xE2>", "<0x82>"), ("a",), "a"),
        ("byte fallback, strip", (f"{SPACE}the", "<0x0A>", "<0xE2>"), ("<0x82>", "<0xAC>", "a"), "€a"),
        ("byte fallback, strip", (f"{SPACE}the", "<0x0A>"), ("<0xE2>", f"{SPACE}a"), "� a"),
        ("byte fallback, strip", ("<0x0A>",), (f"{SPACE}a",), " a"),
        ("byte fallback", (*["<0xE2>", "<0x82>", "<0xAC>"] * 9, "<0xF0>"), ("<0x9F>", "<0x98>", "<0x80>"), "😀"),
    ],
)
def test_half_a_character_at_the_prompts_end_is_given_out_only_where_the_answer_finishes_it(
    kind: str, prompt: tuple[str, ...], answer: tuple[str, ...], expected: str
) -> None:
    tokenizer = made(kind)
    assert "".join(parts(Detokenizer(tokenizer), ids(tokenizer, *answer), ids(tokenizer, *prompt))) == expected
