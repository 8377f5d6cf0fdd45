"""Compilation of constraints, cached and bounded in time and memory.

llguidance is imported by the first constraint: most processes have none.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from entmtp.decoding.grammars.vocabulary import GrammarVocabulary
from entmtp.decoding.request import InvalidRequestError
from entmtp.structured import JSON_LAYOUT, Structured, lark_literal

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLParserLimits

CACHED_GRAMMARS = 128

DEAD_END = "NoExtension"
"""Beginning of llguidance's error for a text that no token goes on with."""

_MAX_REASON = 200
_HIDDEN = "<non-verbose/>"
"""Stand-in for a state in llguidance's errors, which users need not see."""


@cache
def _limits() -> LLParserLimits:
    """llguidance's limits, a half to a tenth of its own.

    A compilation takes tenths of a second at most, a token of the answer milliseconds, and a grammar some 50 MB.
    """
    from llguidance import LLParserLimits

    return LLParserLimits(
        initial_lexer_fuel=500_000,
        step_lexer_fuel=50_000,
        step_max_items=20_000,
        max_lexer_states=32_768,
        max_grammar_size=100_000,
        verbose_errors=False,
    )


@dataclass(frozen=True)
class Grammar:
    """A compiled constraint, from which each answer takes a copy of its state.

    Attributes:
        start: state before the first token.
        first: the same over tokens that are spelt as the first of a text; None if all are spelt the same there.
    """

    vocabulary: GrammarVocabulary
    start: LLMatcher
    first: LLMatcher | None


class GrammarCompiler:
    """Compiles constraints for one model; any thread may call it, and waits for no compilation but its own."""

    def __init__(self, make_vocabulary: Callable[[], GrammarVocabulary]) -> None:
        """``make_vocabulary`` is called once, at the first constraint."""
        self._make_vocabulary = make_vocabulary
        self._vocabulary: GrammarVocabulary | None = None
        self._vocabulary_lock = threading.Lock()
        self._compiled: OrderedDict[tuple[str, str], Future[Grammar]] = OrderedDict()
        self._lock = threading.Lock()

    def prepare(self) -> GrammarVocabulary:
        """Make the vocabulary, unless it is made already."""
        with self._vocabulary_lock:
            self._vocabulary = vocabulary = self._vocabulary or self._make_vocabulary()
        return vocabulary

    def compile(self, structured: Structured) -> Grammar:
        """Compile a constraint, or take it from the cache.

        Raises:
            InvalidRequestError: it is malformed, too large, or no text fits it; the message names its field.
        """
        key = structured.kind, structured.source
        with self._lock:
            mine = (found := self._compiled.get(key)) is None
            future: Future[Grammar] = Future() if found is None else found
            self._compiled[key] = future
            self._compiled.move_to_end(key)
            if len(self._compiled) > CACHED_GRAMMARS:
                self._compiled.popitem(last=False)
        if mine:
            try:
                future.set_result(self._compile(structured))
            except BaseException as error:
                future.set_exception(error)
                with self._lock:
                    if not isinstance(error, _GrammarError):  # it may not come again
                        self._compiled.pop(key, None)
        try:
            return future.result()
        except _GrammarError as error:
            raise InvalidRequestError(f"{structured.field_name}: {error}") from error

    def _compile(self, structured: Structured) -> Grammar:
        text, vocabulary = _grammar_text(structured), self.prepare()
        start = _matcher(vocabulary.tokens, text, structured.kind)
        first = None
        if vocabulary.first_tokens is not None:
            first = _matcher(vocabulary.first_tokens, text, structured.kind)
        return Grammar(vocabulary, start, first)


class _GrammarError(Exception):
    """Raised for a constraint that can't be used; the message lacks the field."""


def _grammar_text(structured: Structured) -> str:
    from llguidance import LLMatcher
    from llguidance.gbnf_to_lark import any_to_lark

    kind, source = structured.kind, structured.source
    try:
        if kind == "json":
            # Last, so that options in the schema itself don't count: 'lenient' would ignore what it can't check.
            return LLMatcher.grammar_from_json_schema(json.dumps({**json.loads(source), "x-guidance": JSON_LAYOUT}))
        if kind == "regex":
            return LLMatcher.grammar_from_regex(source)
        if kind == "choice":
            # One terminal: as a rule, so many alternatives would be more than a parser's row may have.
            texts = " | ".join(map(lark_literal, json.loads(source)))
            return LLMatcher.grammar_from_lark(f"start: CHOICE\nCHOICE: {texts}")
        return LLMatcher.grammar_from_lark(any_to_lark(source))
    except Exception as error:  # of several types, RecursionError among them
        raise _GrammarError(_refusal(kind, str(error))) from error


def _matcher(tokenizer: Any, text: str, kind: str) -> LLMatcher:
    """Make a state of a grammar and take its first step, in which a hostile grammar shows."""
    from llguidance import LLMatcher

    matcher = LLMatcher(tokenizer, text, limits=_limits(), log_level=0)
    if not (reason := matcher.get_error()):
        probe = matcher.deep_copy()
        probe.compute_ff_tokens()
        probe.compute_bitmask()
        reason = probe.get_error() or (DEAD_END if probe.is_stopped() else "")
    if reason:
        raise _GrammarError(_refusal(kind, reason))
    return matcher


def _refusal(kind: str, reason: str) -> str:
    if reason.startswith(DEAD_END):
        reason = "no text of the model's tokens fits it"
    line = " ".join(reason.replace(_HIDDEN, "").split()) or "it can't be read"
    shown = line if len(line) <= _MAX_REASON else f"{line[: _MAX_REASON - 1]}…"
    return f"this {kind} is not accepted: {shown}; change or simplify it"
