"""The text of an answer as it comes, and what ends it."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from entmtp.decoding.detokenizer import Detokenizer
from entmtp.decoding.text import TextStream
from tests.vocabularies import KINDS, SPACE, byte_level, ids, made, random_tokens


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """One token per byte, so that a character may need several."""
    return byte_level(())


def streamed(tokenizer: Tokenizer, text: str, stop: list[str]) -> tuple[list[str], str | None]:
    stream = TextStream(Detokenizer(tokenizer), stop)
    pieces = []
    for token in tokenizer.encode(text).ids:
        pieces.append(stream.push(token))
        if stream.stopped:
            return pieces, stream.stopped
    return [*pieces, stream.finish()], None


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
def test_pieces_are_the_text_and_never_half_a_character(tokenizer: Tokenizer, text: str) -> None:
    pieces, _ = streamed(tokenizer, text, [])
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces) or "\ufffd" in text


@given(st.text("ab\n", max_size=40), st.lists(st.text("ab\n", min_size=1, max_size=4), min_size=1, max_size=3))
def test_a_text_ends_before_the_first_stop_string(tokenizer: Tokenizer, text: str, stop: list[str]) -> None:
    pieces, stopped = streamed(tokenizer, text, stop)
    # The first to be complete ends it; of several that are complete at once, the one that begins first.
    ends = [end for end in range(len(text) + 1) if any(text[:end].endswith(one) for one in stop)]
    if not ends:
        assert stopped is None
        assert "".join(pieces) == text
        return
    begins = [text[: ends[0]].find(one) for one in stop if one in text[: ends[0]]]
    assert stopped in stop
    assert "".join(pieces) == text[: min(begins)]


def test_text_that_may_become_a_stop_string_is_held_back(tokenizer: Tokenizer) -> None:
    pieces, stopped = streamed(tokenizer, "one EN two END three", ["END"])
    assert stopped == "END"
    assert "".join(pieces) == "one EN two "
    assert pieces[4:6] == ["", ""]


def ended(tokenizer: Tokenizer, tokens: list[int], stop: list[str], min_tokens: int) -> tuple[str, str | None, int]:
    """The text that should come, what should stop it, and with how many tokens: by decoding every prefix."""
    before = tokenizer.decode(tokens[:min_tokens])
    for count in range(min_tokens + 1, len(tokens) + 1):
        text = tokenizer.decode(tokens[:count])
        known = next(
            (at for at, signs in enumerate(zip(before, text)) if len(set(signs)) > 1), min(len(before), len(text))
        )
        found = [(text.find(one, max(0, known + 1 - len(one))), one) for one in stop]
        if complete := [one for one in found if one[0] >= 0]:
            at, stopped = min(complete)
            return text[:at], stopped, count
        before = text
    return tokenizer.decode(tokens), None, len(tokens)


@pytest.mark.parametrize("kind", KINDS)
def test_stop_strings_end_random_tokens_where_their_text_has_them_first(kind: str) -> None:
    tokenizer, rng = made(kind), random.Random(3)
    detokenizer = Detokenizer(tokenizer)
    stops = 0
    for _ in range(200):
        tokens = random_tokens(kind, rng, rng.randint(1, 25))
        text = tokenizer.decode(tokens)
        cuts = [rng.randrange(len(text)) for _ in range(rng.randint(0, 3))] if text else []
        stop = [one for at in cuts if "\ufffd" not in (one := text[at : at + rng.randint(1, 4)])]
        min_tokens = rng.choice([0, 0, rng.randint(0, 25)])
        stream = TextStream(detokenizer, stop, min_tokens)
        given, count = "", 0
        while count < len(tokens) and not stream.stopped:
            given += stream.push(tokens[count])
            count += 1
        given += stream.finish()
        assert (given, stream.stopped, count) == ended(tokenizer, tokens, stop, min_tokens), (tokens, stop, min_tokens)
        stops += stream.stopped is not None
    assert stops > 40


@pytest.mark.parametrize("kind", ["byte fallback, strip", "Mistral's SentencePiece"])
def test_a_newline_that_a_byte_token_spells_ends_a_text_at_once(kind: str) -> None:
    stream = TextStream(Detokenizer(made(kind)), ["\n"])
    the, newline = ids(made(kind), f"{SPACE}the", "<0x0A>")
    assert [stream.push(the), stream.push(newline), stream.stopped] == ["the", "", "\n"]


def test_a_stop_string_may_begin_with_the_space_after_the_prompt() -> None:
    tokenizer = made("byte fallback, strip")
    prompt, answer = ids(tokenizer, f"{SPACE}capital", f"{SPACE}is"), ids(tokenizer, f"{SPACE}the", f"{SPACE}Paris")
    stream = TextStream(Detokenizer(tokenizer), [" Paris"], prompt=prompt)
    assert [stream.push(token) for token in answer] == [" the", ""]
    assert stream.stopped == " Paris"


def test_a_stop_string_within_the_first_tokens_does_not_end_the_text(tokenizer: Tokenizer) -> None:
    stream = TextStream(Detokenizer(tokenizer), ["7", "78"], min_tokens=4)
    pieces = [stream.push(token) for token in tokenizer.encode("7 78 7").ids]
    assert ("".join(pieces), stream.stopped) == ("7 78 ", "7")
    stream = TextStream(Detokenizer(tokenizer), ["78"], min_tokens=1)
    pieces = [stream.push(token) for token in tokenizer.encode("78").ids]
    assert ("".join(pieces), stream.stopped) == ("", "78")


def test_a_space_that_is_left_out_stops_nothing() -> None:
    """The tokenizer drops a first space, also where a byte token spells it."""
    tokenizer = made("byte fallback, strip")
    tokens = ids(tokenizer, "<0x20>", "<0x41>", "<0x0A>", "a")
    stream = TextStream(Detokenizer(tokenizer), [" A", "\n"])
    assert [stream.push(token) for token in tokens[:3]] == ["", "", "A"]
    assert stream.stopped == "\n"
