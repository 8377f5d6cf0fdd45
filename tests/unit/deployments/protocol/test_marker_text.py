"""Special tokens of a format are put back where they were, however late the text comes."""

from __future__ import annotations

import random

import pytest

from deployments.protocol.marker_text import MarkerText
from entmtp.decoding.detokenizer import Detokenizer
from entmtp.decoding.outputs import RequestOutput
from entmtp.decoding.text import TextStream
from tests.helpers.tokenizers import KINDS, ids, made, random_tokens

NAME = "[MARKER]"


def marked(detokenizer: Detokenizer, tokens: list[int], marker: int, stop: list[str]) -> str:
    """Text of an answer of these tokens, three of them in an output, with its markers."""
    stream, reader, text = TextStream(detokenizer, stop), MarkerText(detokenizer, {marker: NAME}), ""
    for at in range(0, len(tokens), 3):
        part = tokens[at : at + 3]
        last = at + 3 >= len(tokens)
        new = "".join(map(stream.push, part)) + (stream.finish() if last else "")
        text += reader.read(RequestOutput("r", part, new, finish_reason="stop" if last else None))
    return text


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stop", [[], ["never so"]])
def test_text_is_unharmed_and_every_marker_is_in_it(kind: str, stop: list[str]) -> None:
    tokenizer, rng = made(kind), random.Random(0)
    detokenizer = Detokenizer(tokenizer)
    marker = next(id for id, one in sorted(tokenizer.get_added_tokens_decoder().items()) if one.special)
    for _ in range(20):
        tokens = random_tokens(kind, rng, 9)
        text = marked(detokenizer, tokens, marker, stop)
        assert text.replace(NAME, "") == detokenizer.decode(tokens)
        assert text.count(NAME) == tokens.count(marker)


@pytest.mark.parametrize(
    ("kind", "names"),
    [("byte level", ["ĠParis", "Ã", "©", "Ġthe"]), ("byte fallback", ["▁the", "<0x41>", "<0x42>"])],
)
def test_a_marker_is_where_the_model_wrote_it(kind: str, names: list[str]) -> None:
    tokenizer = made(kind)
    detokenizer = Detokenizer(tokenizer)
    words, (marker,) = ids(tokenizer, *names), ids(tokenizer, "<s>")
    before, both = detokenizer.decode(words), detokenizer.decode(words * 2)
    expected = f"{before}{NAME}{both[len(before) :]}{NAME}{NAME}"
    assert marked(detokenizer, [*words, marker, *words, marker, marker], marker, []) == expected
