import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from entmtp.decoding.text import TextStream


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """One token per byte, so that a character may need several."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={sign: at for at, sign in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    return made


def streamed(tokenizer: Tokenizer, text: str, stop: list[str]) -> tuple[list[str], str | None]:
    stream = TextStream(tokenizer, stop)
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
