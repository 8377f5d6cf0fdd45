"""Texts, bytes and offsets of tokens, as log-probabilities report them."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import groupby

import pytest
from tokenizers import Tokenizer, decoders, models

from entmtp.decoding.detokenizer import Detokenizer
from entmtp.decoding.incremental_decoder import IncrementalDecoder
from entmtp.decoding.outputs import TokenLogprobs
from entmtp.decoding.token_texts import Position, TokenTexts
from tests.helpers.tokenizers import KINDS, SPACE, byte_level, ids, made, random_tokens

KNOWN = ["byte fallback", "byte fallback, strip", "Mistral's SentencePiece", "byte level", "Mistral's Tekken"]


def described(kind: str, tokens: list[int], prompt: Sequence[int] = ()) -> list[Position]:
    """All tokens at once."""
    return TokenTexts(_detokenizer(kind), prompt).take(tokens, [TokenLogprobs(-1.0, [])] * len(tokens), ended=True)


def streamed(kind: str, tokens: list[int], prompt: Sequence[int] = ()) -> list[Position]:
    """One token after the other."""
    texts = TokenTexts(_detokenizer(kind), prompt)
    return [one for token in tokens for one in texts.take([token], [TokenLogprobs(-1.0, [])])]


@cache
def _detokenizer(kind: str) -> Detokenizer:
    return Detokenizer(made(kind))


@pytest.mark.parametrize("kind", ["byte fallback, strip", "Mistral's SentencePiece"])
def test_words_keep_their_spaces_and_offsets_are_where_they_begin(kind: str) -> None:
    words = [f"{SPACE}Paris", f"{SPACE}the", f"{SPACE}capital", f"{SPACE}is"]
    first_text = described(kind, ids(made(kind), *words))
    assert [one.chosen.text for one in first_text] == ["Paris", " the", " capital", " is"]
    assert [one.offset for one in first_text] == [0, 5, 9, 17]
    continued = described(kind, ids(made(kind), *words), ids(made(kind), f"{SPACE}a"))
    assert [one.chosen.text for one in continued] == [" Paris", " the", " capital", " is"]
    assert [one.offset for one in continued] == [0, 6, 10, 18]


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


def whole_offsets(kind: str, tokens: list[int]) -> list[int]:
    """Offsets of tokens, each of which has text, in the text that they alone are."""
    detokenizer, spelt = _detokenizer(kind), b""
    if detokenizer.reach == "bytes":
        return list(_run_offsets(kind, tokens))
    found = []
    for token in tokens:
        spelling = detokenizer.spelling(token)
        found.append(len((spelt + spelling[:1]).decode(errors="replace")) - 1)
        spelt += spelling
    return found


def _run_offsets(kind: str, tokens: list[int]) -> Iterator[int]:
    detokenizer, at = _detokenizer(kind), 0
    for spells_byte, group in groupby(tokens, lambda token: detokenizer.byte(token) is not None):
        run = list(group)
        if not spells_byte:
            for token in run:
                yield at
                at += len(detokenizer.spelling(token).decode())
            continue
        spelt = b"".join(map(detokenizer.spelling, run))
        try:
            text = spelt.decode()
        except UnicodeDecodeError:
            yield from range(at, at := at + len(run))
        else:
            yield from (at + len(spelt[: end + 1].decode(errors="replace")) - 1 for end in range(len(run)))
            at += len(text)


@pytest.mark.parametrize("kind", ["byte fallback", "byte level", "Mistral's Tekken"])
def test_every_token_of_any_is_where_it_begins_in_the_decoded_text(kind: str) -> None:
    detokenizer, rng, broken = _detokenizer(kind), random.Random(7), 0
    for _ in range(1000):
        tokens = list(filter(detokenizer.has_text, random_tokens(kind, rng, rng.randint(1, 12))))
        assert [one.offset for one in described(kind, tokens)] == whole_offsets(kind, tokens), tokens
        broken += "\ufffd" in detokenizer.decode(tokens)
    assert broken > 300


@pytest.mark.parametrize("kind", [kind for kind in KINDS if _detokenizer(kind).reach != "text"])
def test_a_text_goes_on_with_each_whole_token_at_its_offset_after_any_prompt(kind: str) -> None:
    detokenizer, rng, compared = _detokenizer(kind), random.Random(8), 0
    for at in range(300):
        prompt = random_tokens(kind, rng, rng.randint(1, 12)) if at % 3 else []
        tokens = random_tokens(kind, rng, rng.randint(1, 12))
        decoder = IncrementalDecoder(detokenizer, prompt)
        text = "".join([*(decoder.push(token) for token in tokens), decoder.rest()])
        compared += "\ufffd" in text
        for positions in (described(kind, tokens, prompt), streamed(kind, tokens, prompt)):
            offsets = [one.offset for one in positions]
            for token, one in zip(tokens, positions, strict=True):
                whole = detokenizer.has_text(token) and not one.chosen.text.startswith("bytes:")
                if whole and detokenizer.byte(token) is None:
                    assert text.startswith(one.chosen.text, one.offset), (prompt, tokens, one)
            assert offsets == sorted(offsets)
            assert offsets[-1] <= len(text)
        for token, one in zip(tokens, described(kind, tokens, prompt), strict=True):
            if detokenizer.byte(token) is not None and one.chosen.bytes.isascii():
                assert text.startswith((one.chosen.text, "\ufffd"), one.offset), (prompt, tokens, one)
    assert compared > 20


@pytest.mark.parametrize(
    ("kind", "prompt", "names", "expected"),
    [
        ("byte fallback, strip", (), (f"{SPACE}a", "<0x0A>", "<0xF0>", "<0x9F>", "a"), [0, 1, 2, 3, 4]),
        ("byte fallback, strip", (), ("<0xE2>", "<0x82>", "<0xAC>", "<s>", "<0xE2>", "<s>"), [0, 1, 2, 3, 3, 4]),
        ("byte fallback, strip", (), ("<0x20>", "<0x41>", "<0x0A>", f"{SPACE}a"), [0, 0, 1, 2]),
        ("byte fallback, strip", (), ("<0x20>", "<0x41>", "<0xE2>", f"{SPACE}a"), [0, 1, 2, 3]),
        ("byte fallback, strip", (f"{SPACE}a", "<0xE2>"), ("<0x82>", "<0xAC>", "<0x0A>", "a"), [0, 0, 1, 2]),
        ("byte fallback, strip", (f"{SPACE}a", "<0xE2>"), ("<0x82>", "<0x0A>", "a"), [0, 1, 2]),
        ("byte level", (), ("ð", "Ġthe", "a"), [0, 1, 5]),
        ("byte level", (), ("ð", "Ł", "ð", "<s>", "Ł", "ĺ", "Ģ", "a"), [0, 0, 1, 1, 1, 1, 1, 2]),
        ("byte level", (), ("í", "©", "a"), [0, 1, 2]),
        ("byte level", ("Ġthe", "ð", "Ł"), ("ĺ", "Ģ", "a"), [0, 0, 1]),
        ("byte level", ("Ġthe", "ð", "Ł"), ("ĺ", "Ġthe", "a"), [0, 0, 4]),
        ("byte level", ("Ġthe", "ð"), ("ð", "Ġthe"), [0, 1]),
        ("bpe", (), ("a", "ed</w>", "b", "b"), [0, 1, 4, 5]),
    ],
)
def test_offsets_around_bytes_that_make_no_character(
    kind: str, prompt: tuple[str, ...], names: tuple[str, ...], expected: list[int]
) -> None:
    positions = described(kind, ids(made(kind), *names), ids(made(kind), *prompt))
    assert [one.offset for one in positions] == expected


def test_a_token_that_is_shorter_than_it_was_spelt_begins_where_its_text_does() -> None:
    tokenizer = Tokenizer(models.BPE({"x</w>": 0, "a": 1, "b": 2}, []))
    tokenizer.decoder = decoders.BPEDecoder()
    detokenizer = Detokenizer(tokenizer)
    assert (detokenizer.decode([1, 2]), detokenizer.spelling(2)) == ("ab", b" b")
    positions = TokenTexts(detokenizer).take([1, 2], [TokenLogprobs(-1.0, [])] * 2)
    assert [one.offset for one in positions] == [0, 1]


def test_a_stream_takes_byte_tokens_for_parts_of_characters_until_one_is_none() -> None:
    tokens = ids(made("byte fallback"), "<0xE2>", "<0x82>", "<0xAC>", "<0xE2>", "<0x41>", "<0x0A>", f"{SPACE}a")
    assert [one.offset for one in streamed("byte fallback", tokens)] == [0, 0, 0, 1, 4, 5, 6]
    assert [one.offset for one in described("byte fallback", tokens)] == [0, 1, 2, 3, 4, 5, 6]


def test_tokens_with_one_text_have_entries_of_their_own() -> None:
    tokenizer = made("byte fallback, strip")
    spaced, plain, letter, spelt = ids(tokenizer, f"{SPACE}true", "true", "a", "<0x61>")
    logprobs = [
        TokenLogprobs(-0.651, [(spaced, -0.651), (plain, -0.863)]),
        TokenLogprobs(-2.0, [(letter, -0.5), (spelt, -2.0)]),
    ]
    first, second = TokenTexts(Detokenizer(tokenizer), [plain]).take([spaced, spelt], logprobs)
    assert [(one.text, one.logprob) for one in first.top] == [(" true", -0.651), ("true", -0.863)]
    assert [(one.text, one.logprob) for one in second.top] == [(f"token_id:{letter}", -0.5), ("a", -2.0)]
    assert second.chosen.text == "a"
    (first_text,) = TokenTexts(Detokenizer(tokenizer)).take([spaced], logprobs[:1])
    assert [one.text for one in first_text.top] == ["true", f"token_id:{plain}"]


def test_special_tokens_have_a_name_and_no_bytes() -> None:
    tokenizer = made("byte fallback, strip")
    tokens = [*ids(tokenizer, "<s>", f"{SPACE}a", "</s>"), tokenizer.get_vocab_size()]
    positions = described("byte fallback, strip", tokens)
    assert [one.chosen.text for one in positions] == ["<s>", "a", "</s>", ""]
    assert [one.chosen.bytes for one in positions] == [b"", b"a", b"", b""]
    assert [one.offset for one in positions] == [0, 0, 1, 1]
