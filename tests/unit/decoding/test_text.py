"""The text of an answer as it comes, and what ends it."""

import random
from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from entmtp.decoding.detokenizer import Detokenizer
from entmtp.decoding.incremental_decoder import IncrementalDecoder
from entmtp.decoding.text import TextStream
from tests.helpers.tokenizers import BYTES, DECODERS, KINDS, SPACE, byte_level, ids, made, random_tokens


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


def test_text_that_may_become_a_stop_string_is_not_returned_yet(tokenizer: Tokenizer) -> None:
    pieces, stopped = streamed(tokenizer, "one EN two END three", ["END"])
    assert stopped == "END"
    assert "".join(pieces) == "one EN two "
    assert pieces[4:6] == ["", ""]


def decoded_after(detokenizer: Detokenizer, prompt: list[int], tokens: list[int]) -> str:
    """The text of the tokens where it goes on from a prompt's."""
    decoder = IncrementalDecoder(detokenizer, prompt)
    return "".join([*(decoder.push(token) for token in tokens), decoder.rest()])


def ended(
    decode: Callable[[list[int]], str], tokens: list[int], stop: list[str], min_tokens: int
) -> tuple[str, str | None, int]:
    """The text that should come, what should stop it, and with how many tokens: by decoding every prefix."""
    before = decode(tokens[:min_tokens])
    for count in range(min_tokens + 1, len(tokens) + 1):
        text = decode(tokens[:count])
        known = next(
            (at for at, signs in enumerate(zip(before, text)) if len(set(signs)) > 1), min(len(before), len(text))
        )
        found = [(text.find(one, max(0, known + 1 - len(one))), one) for one in stop]
        if complete := [one for one in found if one[0] >= 0]:
            at, stopped = min(complete)
            return text[:at], stopped, count
        before = text
    return decode(tokens), None, len(tokens)


def pushed(stream: TextStream, tokens: list[int]) -> tuple[str, str | None, int]:
    """The text that comes, what stops it, and with how many tokens."""
    given, count = "", 0
    while count < len(tokens) and not stream.stopped:
        given += stream.push(tokens[count])
        count += 1
    return given + stream.finish(), stream.stopped, count


def random_stops(rng: random.Random, text: str) -> tuple[list[str], int]:
    """Stop strings of which most are in the text, and ``min_tokens``."""
    cuts = [rng.randrange(len(text)) for _ in range(rng.randint(0, 3))] if text else []
    stop = [one for at in cuts if "\ufffd" not in (one := text[at : at + rng.randint(1, 4)])]
    return stop, rng.choice([0, 0, rng.randint(0, 25)])


@pytest.mark.parametrize("kind", KINDS)
def test_stop_strings_end_random_tokens_where_their_text_has_them_first(kind: str) -> None:
    tokenizer, rng = made(kind), random.Random(3)
    detokenizer = Detokenizer(tokenizer)
    stops = 0
    for _ in range(200):
        tokens = random_tokens(kind, rng, rng.randint(1, 25))
        stop, least = random_stops(rng, tokenizer.decode(tokens))
        found = pushed(TextStream(detokenizer, stop, least), tokens)
        assert found == ended(tokenizer.decode, tokens, stop, least), (tokens, stop, least)
        stops += found[1] is not None
    assert stops > 40


@pytest.mark.parametrize("kind", KINDS)
def test_stop_strings_end_random_tokens_after_any_prompt(kind: str) -> None:
    detokenizer, rng = Detokenizer(made(kind)), random.Random(6)
    stops = 0
    for _ in range(300):
        prompt = random_tokens(kind, rng, rng.randint(1, 12))
        tokens = random_tokens(kind, rng, rng.randint(1, 15))
        decode = partial(decoded_after, detokenizer, prompt)
        stop, least = random_stops(rng, decode(tokens))
        found = pushed(TextStream(detokenizer, stop, least, prompt), tokens)
        assert found == ended(decode, tokens, stop, least), (prompt, tokens, stop, least)
        stops += found[1] is not None
    assert stops > 60


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        (("<0xE2>", f"{SPACE}a"), ("<0x0A>", "<0x41>")),
        (("<0x41>", f"{SPACE}a"), ("<0x0A>", "<0x41>")),
        (("<0x41>", f"{SPACE}a"), ("<0x42>", "<0x0A>", "<0x41>")),
        ((f"{SPACE}a", "<0xE2>", "<0x82>"), ("<0xAC>", "<0x0A>", "<0x41>")),
    ],
)
def test_byte_tokens_of_a_prompt_hide_no_stop_string(prompt: tuple[str, ...], answer: tuple[str, ...]) -> None:
    tokenizer = made("byte fallback, strip")
    stream = TextStream(Detokenizer(tokenizer), ["\n"], prompt=ids(tokenizer, *prompt))
    _, stopped, count = pushed(stream, ids(tokenizer, *answer))
    assert (stopped, count) == ("\n", len(answer) - 1)


def test_a_prompt_of_byte_tokens_hides_no_stop_string_where_there_are_no_others() -> None:
    tokenizer = Tokenizer(models.BPE({name: at for at, name in enumerate(BYTES)}, []))
    tokenizer.decoder = DECODERS["byte fallback"]
    stream = TextStream(Detokenizer(tokenizer), ["AAA"], min_tokens=2, prompt=[*b"A"])
    assert pushed(stream, [*b"AAAB"]) == ("", "AAA", 3)


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


@given(st.text("ab\n", max_size=40), st.lists(st.text("ab\n", min_size=1, max_size=4), min_size=1, max_size=3))
def test_a_stop_string_may_belong_to_the_text_that_it_ends(tokenizer: Tokenizer, text: str, stop: list[str]) -> None:
    without, stopped = streamed(tokenizer, text, stop)
    stream, tokens = TextStream(Detokenizer(tokenizer), stop, include_stop=True), iter(tokenizer.encode(text).ids)
    pieces = []
    while not stream.stopped and (token := next(tokens, None)) is not None:
        pieces.append(stream.push(token))
    assert "".join([*pieces, stream.finish()]) == "".join(without) + (stopped or "")
    assert stream.stopped == stopped


def test_special_tokens_have_a_text_where_they_are_wanted() -> None:
    tokenizer = byte_level(())
    tokenizer.add_special_tokens(["<end>"])
    tokens = tokenizer.encode("a<end>b").ids
    texts = []
    for skip in (True, False):
        stream = TextStream(Detokenizer(tokenizer, skip_special=skip))
        texts.append("".join([*map(stream.push, tokens), stream.finish()]))
    assert texts == ["ab", "a<end>b"]
