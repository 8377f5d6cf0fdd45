"""Constraints over the tokens of tokenizers of every kind."""

from __future__ import annotations

import math
import random
import re

import pytest
import torch

from entmtp.decoding.detokenizer import Detokenizer
from entmtp.decoding.grammars.compiler import GrammarCompiler
from entmtp.decoding.grammars.constraint import Constraint
from entmtp.decoding.grammars.vocabulary import GrammarVocabulary
from entmtp.decoding.request import InvalidRequestError
from entmtp.structured import MAX_CHOICES, Structured, framed_json
from tests.helpers.constrained_texts import json_tokenizer
from tests.helpers.tokenizers import KINDS, ids, made

TOKENS = json_tokenizer()
END = ids(TOKENS, "</s>")[0]
SIZE = TOKENS.get_vocab_size()
COMPILER = GrammarCompiler(lambda: GrammarVocabulary.of(TOKENS, SIZE))


def constraint_of(structured: Structured, *, min_tokens: int = 0, stop: int = END) -> Constraint:
    return Constraint(COMPILER.compile(structured), "regex", frozenset({stop}), min_tokens, begins_text=True)


def allowed(constraint: Constraint, size: int = SIZE) -> set[int]:
    return set(constraint.apply_mask(torch.zeros(size)).isfinite().nonzero()[:, 0].tolist())


def tokens_of(text: str) -> list[int]:
    return TOKENS.encode(text, add_special_tokens=False).ids


# The others' decoders change a token's text by what comes later, or by the whole text.
STEADY = [kind for kind in KINDS if kind not in ("written in Python", "text replaced", "ctc", "bpe", "wordpiece")]


@pytest.mark.parametrize("kind", STEADY)
@pytest.mark.parametrize("begins_text", [True, False])
def test_texts_of_every_tokenizer_fit_their_expression(kind: str, begins_text: bool) -> None:
    tokenizer = made(kind)
    size = tokenizer.get_vocab_size() + 2
    grammar = GrammarCompiler(lambda: GrammarVocabulary.of(tokenizer, size)).compile(Structured(regex="[a-zé ]{2,9}"))
    detokenizer, rng = Detokenizer(tokenizer), random.Random(0)
    prompt = (
        [] if begins_text else [next(token for token in range(size) if detokenizer.spelling(token).strip() == b"a")]
    )
    before = len(detokenizer.decode(prompt))
    for _ in range(10):
        constraint = Constraint(grammar, "regex", frozenset({size - 1}), 0, begins_text=begins_text)
        tokens: list[int] = []
        while constraint.end is None:
            token = rng.choice(sorted(allowed(constraint, size)))
            tokens.append(token)
            constraint.advance([token])
        text = detokenizer.decode([*prompt, *tokens])[before:]
        assert re.fullmatch("[a-zé ]{2,9}", text), (tokens, text)


def test_an_end_is_allowed_only_where_the_text_is_complete() -> None:
    constraint = constraint_of(Structured(regex="ab?"))
    assert END not in allowed(constraint)
    constraint.advance(tokens_of("a"))
    assert END in allowed(constraint)
    assert constraint.end is None
    constraint.advance([END, *tokens_of("zz")])
    assert constraint.end == 2


def test_a_text_that_nothing_can_follow_is_complete() -> None:
    constraint = constraint_of(Structured(choice=["true", "t"]))
    constraint.advance(ids(TOKENS, "true"))
    assert constraint.end == 1


def test_min_tokens_hold_an_end_back_while_anything_else_may_follow() -> None:
    constraint = constraint_of(Structured(regex="a*"), min_tokens=2)
    constraint.advance(tokens_of("a"))
    assert END not in allowed(constraint)
    constraint.advance(tokens_of("a"))
    assert END in allowed(constraint)


def test_a_token_of_the_text_that_ends_the_answer_is_no_part_of_it() -> None:
    letter = tokens_of("b")[0]
    constraint = constraint_of(Structured(regex="[ab]b?"), stop=letter)
    assert letter not in allowed(constraint)
    assert not constraint.allows(letter)
    constraint.advance(tokens_of("a"))
    assert letter in allowed(constraint)


def test_special_tokens_have_no_text() -> None:
    special = ids(TOKENS, "<s>")[0]
    assert special not in allowed(constraint_of(Structured(regex="(.|\n)*")))
    constraint = constraint_of(Structured(grammar='start: <s> "a"'))
    assert allowed(constraint) == {special}


def test_paths_leave_no_trace() -> None:
    nothing: dict[str, int] = {}
    constraint = constraint_of(Structured(json={"enum": ["ab", "name"]}))
    constraint.advance(tokens_of('"'))
    before = allowed(constraint)
    with constraint.after(tokens_of("name")):
        assert constraint.forced(8) == tokens_of('"')
        constraint.follow(tokens_of('"')[0])
        complete = not constraint.can_go_on
        assert complete
    with pytest.raises(KeyError), constraint.after(tokens_of("ab")):
        nothing["an error within"]
    assert constraint.can_go_on
    assert allowed(constraint) == before


def test_forced_tokens_are_the_only_ones_allowed() -> None:
    constraint = constraint_of(Structured(json={"const": {"name": True, "ab": None}}))
    text = b""
    spelling = Detokenizer(TOKENS).spelling
    while constraint.end is None:
        forced = constraint.forced(100)
        mask = allowed(constraint)
        assert (len(mask) == 1) == bool(forced)
        assert not forced or mask == {forced[0]}
        token = forced[0] if forced else min(mask)
        text += spelling(token)
        constraint.advance([token])
    assert text == b'{"name": true, "ab": null}'


def test_the_mask_is_what_may_follow_one_by_one() -> None:
    constraint = constraint_of(Structured(json={"type": "object", "properties": {"na": {"type": "integer"}}}))
    for token in tokens_of('{"na": -12'):
        if not constraint.forced(1):
            assert {one for one in range(SIZE) if constraint.allows(one)} == allowed(constraint) - {END}
        constraint.advance([token])


def test_a_token_that_is_forbidden_is_an_error() -> None:
    constraint = constraint_of(Structured(regex="a"))
    with pytest.raises(InvalidRequestError, match=r"^regex: "):
        constraint.advance(tokens_of("b"))


def test_a_text_that_no_token_goes_on_with_is_an_error() -> None:
    tokenizer = made("words")
    compiler = GrammarCompiler(lambda: GrammarVocabulary.of(tokenizer, tokenizer.get_vocab_size()))
    with pytest.raises(InvalidRequestError, match=r"^structured: this regex is not accepted: no text"):
        compiler.compile(Structured(regex="Q+"))
    constraint = Constraint(compiler.compile(Structured(regex="a(Q| b)Q")), "regex", frozenset(), 0, begins_text=True)
    constraint.advance(ids(tokenizer, "a", "b"))
    with pytest.raises(InvalidRequestError, match=r"^regex: no token of the model goes on with this text"):
        constraint.apply_mask(torch.zeros(tokenizer.get_vocab_size()))


def test_masks_are_applied_to_any_number_of_rows() -> None:
    constraint = constraint_of(Structured(regex="a"))
    masked = constraint.apply_mask(torch.ones(2, SIZE))
    assert masked.isfinite().sum(-1).tolist() == [1, 1]
    assert masked[:, tokens_of("a")[0]].tolist() == [1, 1]
    assert masked.min() == -math.inf


def test_framed_json_is_written_between_its_texts() -> None:
    schema = {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"], "additionalProperties": False}
    constraint = constraint_of(framed_json("<call>", schema, "</call>\n"))
    text = b""
    while constraint.end is None:
        token = (constraint.forced(1) or sorted(allowed(constraint)))[0]
        text += Detokenizer(TOKENS).spelling(token)
        constraint.advance([token])
    assert text == b'<call>{"a": 1}</call>\n'


def test_an_answer_may_be_one_of_thousands() -> None:
    constraint = constraint_of(Structured(choice=[f"c{at}" for at in range(MAX_CHOICES)]))
    constraint.advance(tokens_of("c4095"))
    assert constraint.end is not None
