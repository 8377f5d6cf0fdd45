"""Compilation of constraints: cached, bounded, and refused by the name of the field."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from entmtp.decoding.grammars import compiler as compiler_module
from entmtp.decoding.grammars.compiler import GrammarCompiler
from entmtp.decoding.grammars.vocabulary import GrammarVocabulary
from entmtp.decoding.request import InvalidRequestError
from entmtp.structured import Structured
from tests.helpers.constrained_texts import json_tokenizer

HOSTILE: dict[str, dict[str, Any]] = {
    "a reference to itself": {"json": {"$ref": "#"}},
    "all of many": {
        "json": {
            "allOf": [
                {"anyOf": [{"type": "object", "properties": {f"k{at}{of}": {"type": "string"}}} for of in range(8)]}
                for at in range(12)
            ]
        }
    },
    "intersections": {"grammar": "start: A\nA: /.*a.{30}/ & /.*b.{30}/ & ~/.*c.{20}/"},
    "deep parentheses": {"regex": "(" * 4000 + "a" + ")" * 4000},
    "a rule of itself": {"grammar": "start: start"},
    "garbage": {"grammar": "((((((" * 10_000},
    "an unknown keyword": {"json": {"type": "array", "uniqueItems": True}},
    "no value": {"json": {"type": "integer", "minimum": 3, "maximum": 2}},
    "look-around": {"regex": "(?=a)b"},
    "not a type": {"json": {"type": "text"}},
    "leniency": {"json": {"type": "array", "uniqueItems": True, "x-guidance": {"lenient": True}}},
}


@pytest.fixture(scope="module")
def vocabulary() -> GrammarVocabulary:
    return GrammarVocabulary.of(json_tokenizer(), json_tokenizer().get_vocab_size())


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_and_malformed_constraints_are_refused(name: str, vocabulary: GrammarVocabulary) -> None:
    compiler = GrammarCompiler(lambda: vocabulary)
    with pytest.raises(InvalidRequestError) as refusal:
        compiler.compile(Structured(**HOSTILE[name], field_name="guided"))
    message = str(refusal.value)
    assert message.startswith("guided: this ")
    assert message.endswith("; change or simplify it")
    assert "\n" not in message


def test_a_constraint_is_compiled_once(vocabulary: GrammarVocabulary, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = GrammarCompiler(lambda: vocabulary)
    first = compiler.compile(Structured(regex="a", field_name="one"))
    assert compiler.compile(Structured(regex="a", field_name="other")) is first
    monkeypatch.setattr(compiler_module, "CACHED_GRAMMARS", 2)
    compiler.compile(Structured(regex="b"))
    compiler.compile(Structured(regex="c"))
    assert compiler.compile(Structured(regex="a")) is not first


def test_a_refusal_names_the_field_of_each_request(vocabulary: GrammarVocabulary) -> None:
    compiler = GrammarCompiler(lambda: vocabulary)
    for field in ("one", "other"):
        with pytest.raises(InvalidRequestError, match=f"^{field}: "):
            compiler.compile(Structured(regex="(", field_name=field))


def test_an_error_that_may_not_come_again_is_not_stored(vocabulary: GrammarVocabulary) -> None:
    errors = [MemoryError()]

    def make() -> GrammarVocabulary:
        if errors:
            raise errors.pop()
        return vocabulary

    compiler = GrammarCompiler(make)
    with pytest.raises(MemoryError):
        compiler.compile(Structured(regex="a"))
    assert compiler.compile(Structured(regex="a"))


def test_many_threads_wait_for_one_compilation(vocabulary: GrammarVocabulary) -> None:
    made, may_go_on = [], threading.Event()

    def make() -> GrammarVocabulary:
        made.append(threading.get_ident())
        assert may_go_on.wait(10)
        return vocabulary

    compiler = GrammarCompiler(make)
    with ThreadPoolExecutor(4) as threads:
        found = [threads.submit(compiler.compile, Structured(regex="a|b")) for _ in range(4)]
        may_go_on.set()
        assert len({id(one.result()) for one in found}) == 1
    assert len(made) == 1
