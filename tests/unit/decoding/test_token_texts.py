"""Texts, bytes and offsets of tokens, as log-probabilities report them."""

from __future__ import annotations

import random

import pytest

from entmtp.decoding.detokenizer import Detokenizer
from entmtp.decoding.logprobs import TokenLogprobs
from entmtp.decoding.token_texts import Position, TokenTexts
from tests.vocabularies import SPACE, byte_level, ids, made, random_tokens

KNOWN = ["byte fallback", "byte fallback, strip", "Mistral's SentencePiece", "byte level", "Mistral's Tekken"]


def described(kind: str, tokens: list[int], continues: bool = False) -> list[Position]:
    texts = TokenTexts(Detokenizer(made(kind)), continues)
    parts = [tokens[:1], tokens[1:]]
    return [one for part in parts for one in texts.take(part, [TokenLogprobs(-1.0, [])] * len(part))]


@pytest.mark.parametrize("kind", ["byte fallback, strip", "Mistral's SentencePiece"])
def test_words_keep_their_spaces_and_offsets_are_where_they_begin(kind: str) -> None:
    words = [f"{SPACE}Paris", f"{SPACE}the", f"{SPACE}capital", f"{SPACE}is"]
    begun = described(kind, ids(made(kind), *words))
    assert [one.chosen.text for one in begun] == ["Paris", " the", " capital", " is"]
    assert [one.offset for one in begun] == [0, 5, 9, 17]
    gone_on = described(kind, ids(made(kind), *words), continues=True)
    assert [one.chosen.text for one in gone_on] == [" Paris", " the", " capital", " is"]
    assert [one.offset for one in gone_on] == [0, 6, 10, 18]


@pytest.mark.parametrize("kind", KNOWN)
@pytest.mark.parametrize("first", ["€", "😀", "a", " é"])
def test_bytes_are_those_of_the_text(kind: str, first: str) -> None:
    text = first + "日本 😀😀 𓀀 ok\n"
    tokenizer = made(kind)
    if kind == "Mistral's Tekken":
        tokens = byte_level(()).encode(text).tokens
        tokens_ids = ids(tokenizer, *tokens)
    elif kind.startswith("byte fallback"):
        tokens_ids = ids(
            tokenizer, *(SPACE if sign == " " else f"<0x{byte:02X}>" for sign in text for byte in sign.encode())
        )
    else:
        tokens_ids = tokenizer.encode(text, add_special_tokens=False).ids
    whole = tokenizer.decode(tokens_ids)
    positions = described(kind, tokens_ids)
    assert b"".join(one.chosen.bytes for one in positions).decode() == whole
    for one in positions:
        if not one.chosen.text.startswith("bytes:"):
            assert whole.startswith(one.chosen.text, one.offset)
    assert any(one.chosen.text.startswith("bytes:\\x") for one in positions)


@pytest.mark.parametrize("kind", KNOWN)
def test_bytes_of_any_tokens_are_those_of_their_text_where_it_has_all_of_them(kind: str) -> None:
    rng, compared = random.Random(4), 0
    for _ in range(300):
        tokens = random_tokens(kind, rng, rng.randint(1, 6))
        text = made(kind).decode(tokens)
        if "\ufffd" not in text:
            compared += 1
            positions = described(kind, tokens)
            assert b"".join(one.chosen.bytes for one in positions).decode() == text
            assert [one.offset for one in positions] == sorted(one.offset for one in positions)
    assert compared > 20


def test_tokens_with_one_text_have_entries_of_their_own() -> None:
    tokenizer = made("byte fallback, strip")
    spaced, plain, letter, spelt = ids(tokenizer, f"{SPACE}true", "true", "a", "<0x61>")
    logprobs = [
        TokenLogprobs(-0.651, [(spaced, -0.651), (plain, -0.863)]),
        TokenLogprobs(-2.0, [(letter, -0.5), (spelt, -2.0)]),
    ]
    first, second = TokenTexts(Detokenizer(tokenizer), continues_text=True).take([spaced, spelt], logprobs)
    assert [(one.text, one.logprob) for one in first.top] == [(" true", -0.651), ("true", -0.863)]
    assert [(one.text, one.logprob) for one in second.top] == [(f"token_id:{letter}", -0.5), ("a", -2.0)]
    assert second.chosen.text == "a"
    (begun,) = TokenTexts(Detokenizer(tokenizer)).take([spaced], logprobs[:1])
    assert [one.text for one in begun.top] == ["true", f"token_id:{plain}"]


def test_special_tokens_have_a_name_and_no_bytes() -> None:
    tokenizer = made("byte fallback, strip")
    tokens = [*ids(tokenizer, "<s>", f"{SPACE}a", "</s>"), tokenizer.get_vocab_size()]
    positions = described("byte fallback, strip", tokens)
    assert [one.chosen.text for one in positions] == ["<s>", "a", "</s>", ""]
    assert [one.chosen.bytes for one in positions] == [b"", b"a", b"", b""]
    assert [one.offset for one in positions] == [0, 0, 1, 1]
