"""Grammars of answers that must call a function, which every format's own parser reads."""

from __future__ import annotations

import pytest
from llguidance import LLMatcher, LLTokenizer

from deployments.protocol.answer_format import AnswerFormat
from deployments.protocol.forced_calls import forced_calls
from deployments.protocol.tool_formats import TOOL_FORMATS
from deployments.protocol.tool_formats.constraint import call_constraint

BYTES = LLTokenizer("byte")
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
CALLS = {
    "hermes": '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>',
    "mistral": '[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Paris"}}]',
    "llama3-json": '{"name": "weather", "parameters": {"city": "Paris"}}',
    "pythonic": '{"name": "weather", "parameters": {"city": "Paris"}}',
}
TWO_CALLS = {
    "hermes": f"{CALLS['hermes']}\n{CALLS['hermes']}",
    "mistral": f"{CALLS['mistral'][:-1]}, {CALLS['mistral'][len('[TOOL_CALLS][') :]}",
    "llama3-json": f"{CALLS['llama3-json']}; {CALLS['llama3-json']}",
    "pythonic": f"{CALLS['pythonic']}; {CALLS['pythonic']}",
}


def grammar_of(name: str, *, parallel_calls: bool = False, **fields: object) -> str:
    constraint = call_constraint(TOOL_FORMATS[name], {"weather": CITY}, parallel_calls)
    answer_format = AnswerFormat(tool_format=constraint.tool_format, **fields)  # type: ignore[arg-type]
    return forced_calls(constraint, answer_format).source


def is_accepted(grammar: str, text: str) -> bool:
    """Whether a whole text has the form."""
    matcher = LLMatcher(BYTES, LLMatcher.grammar_from_lark(grammar))
    assert not matcher.is_error(), matcher.get_error()
    tokens = BYTES.tokenize_str(text)
    return matcher.validate_tokens(tokens) == len(tokens) and matcher.consume_tokens(tokens) and matcher.is_accepting()


@pytest.mark.parametrize("name", sorted(TOOL_FORMATS))
def test_an_answer_is_a_call_and_nothing_else(name: str) -> None:
    grammar = grammar_of(name)
    assert is_accepted(grammar, CALLS[name])
    for wrong in (
        "Hello",
        f"Sure. {CALLS[name]}",
        f"{CALLS[name]} done",
        CALLS[name].replace("Paris", '", "country": "F'),
        CALLS[name].replace("weather", "other"),
        TWO_CALLS[name],
    ):
        assert not is_accepted(grammar, wrong), wrong


@pytest.mark.parametrize("name", sorted(TOOL_FORMATS))
def test_calls_may_be_several_where_the_client_wants_it(name: str) -> None:
    grammar = grammar_of(name, parallel_calls=True)
    assert is_accepted(grammar, CALLS[name])
    assert is_accepted(grammar, TWO_CALLS[name])


@pytest.mark.parametrize("name", sorted(TOOL_FORMATS))
def test_reasoning_may_come_first(name: str) -> None:
    optional, opened = grammar_of(name, reasons=True), grammar_of(name, reasons=True, opens_reasoning=True)
    thought = f"Rain,\nor <b>?\n</think>\n\n{CALLS[name]}"
    assert is_accepted(optional, CALLS[name])
    assert is_accepted(optional, f"<think>{thought}")
    assert not is_accepted(optional, thought)
    assert is_accepted(opened, thought)
    assert not is_accepted(opened, CALLS[name])


def test_special_tokens_stand_for_themselves() -> None:
    """Their texts can't be matched, as decoding leaves them out."""
    assert grammar_of("hermes", markers={7: "<tool_call>", 8: "</tool_call>"}).splitlines()[1] == (
        'call: <[7]> "\\n" value "\\n" <[8]>'
    )
    reasoning = grammar_of("mistral", reasons=True, markers={5: "[TOOL_CALLS]", 6: "</think>"}).splitlines()
    assert reasoning[0] == 'start: ("<think>" thought SPACE)? call '
    assert "call: <[5]> value " in reasoning
    assert "thought: /(.|\\n)*/ <[6]>" in reasoning
