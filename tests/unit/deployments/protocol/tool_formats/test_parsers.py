"""Parsers of tool calls: what is a call, what merely looks like one, and that chunks don't matter."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.protocol.tool_formats import TOOL_FORMATS, format_in_template
from deployments.protocol.tool_formats.interface import ToolFormat
from tests.helpers.examples import examples
from tests.helpers.split_texts import chunks, parsed

HERMES, LLAMA, MISTRAL, PYTHONIC = (TOOL_FORMATS[name] for name in ("hermes", "llama3-json", "mistral", "pythonic"))
CALL = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
ONE = [("f", '{"a":1}')]

CALLS: list[tuple[ToolFormat, str, str, list[tuple[str, str]]]] = [
    (HERMES, CALL, "", ONE),
    (HERMES, f"Let me see.\n{CALL}\n{CALL}\n", "Let me see.", ONE * 2),
    (HERMES, f"{CALL}\n\nDone.", "\n\nDone.", ONE),
    (HERMES, '<tool_call>{"arguments":{"x":[1.50,"a\\u00e9\\n",{"y":null}]},"name":"time.now"}</tool_call>', "",
     [("time.now", '{"x":[1.50,"a\\u00e9\\n",{"y":null}]}')]),
    (HERMES, f"Use <tool_call> as {CALL}", "Use <tool_call> as", ONE),
    (HERMES, f"<tool_call>{CALL}", "<tool_call>", ONE),
    (HERMES, f'<tool_call>{{"name":"f","arguments":{{}}}}<{CALL}', '<tool_call>{"name":"f","arguments":{}}<', ONE),
    (HERMES, f'<tool_call>{{"name":"f","arguments":{{}}}}{CALL}', '<tool_call>{"name":"f","arguments":{}}', ONE),
    (LLAMA, '{"name": "f", "parameters": {"a": 1}}', "", ONE),
    (LLAMA, ' {"name": "f", "parameters": {"a": 1}}; {"name": "weather", "parameters": {}}\n', "",
     [*ONE, ("weather", "{}")]),
    (LLAMA, '{"type": "function", "name": "f", "parameters": {"a": 1}} and more', " and more", ONE),
    (MISTRAL, '[TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}}, {"name": "weather", "arguments": {}}]', "",
     [*ONE, ("weather", "{}")]),
    (MISTRAL, 'Well.[TOOL_CALLS]f[ARGS]{"a": 1}[TOOL_CALLS]weather[CALL_ID]abc123XYZ[ARGS]{}', "Well.",
     [*ONE, ("weather", "{}")]),
    (MISTRAL, '[TOOL_CALLS]f{"a": 1}', "", ONE),
    (PYTHONIC, '[f(a=1), weather(city="Par]is", days=[1, -2], more={"x": None})]', "",
     [("f", '{"a": 1}'), ("weather", '{"city": "Par]is", "days": [1, -2], "more": {"x": null}}')]),
    (PYTHONIC, "[time.now()]\n", "", [("time.now", "{}")]),
]  # fmt: skip

LOOKS_LIKE_A_CALL: list[tuple[ToolFormat, str]] = [
    (HERMES, "<tool_call>"),
    (HERMES, '<tool_call>{"name": "unknown", "arguments": {}}</tool_call>'),
    (HERMES, '<tool_call>{"name": "f", "arguments": {}}'),
    (HERMES, '<tool_call>{"name": "f", "arguments": {}}</tool_cal'),
    (HERMES, '<tool_call>{"name": "f", "arguments": {"a": 01}}</tool_call>'),
    (HERMES, '<tool_call>{"name": "f", "arguments": {"a": 1,}}</tool_call>'),
    (HERMES, '<tool_call>{"name": "f", "arguments": {},}</tool_call>'),
    (HERMES, '<tool_call>{"name": "f", "arguments": [1,]}</tool_call>'),
    (HERMES, '<tool_call>{"name": "f", "arguments": "a"}</tool_call>'),
    (HERMES, '<tool_call>{"name": "f", "name": "f", "arguments": {}}</tool_call>'),
    (HERMES, '<tool_call>{"name": "f", "arguments": {}, "other": 1}</tool_call>'),
    (HERMES, '<tool_call>{"name": "f"}</tool_call>'),
    (HERMES, '<tool_call>{"name": "f", "arguments": {"a": "\n"}}</tool_call>'),
    (HERMES, '<tool_call>{"name": "f", "arguments": {"a": "\\x"}}</tool_call>'),
    (HERMES, '<tool_call>{"name": "f", "arguments": {"a": nul}}</tool_call>'),
    (HERMES, '<tool_call>{"name": "f", "arguments": {"a": 1e999}}</tool_call>'),
    (HERMES, '<tool_call>{"name": "f", "arguments": {"a": ' + "1" * 5000 + "}}</tool_call>"),
    (HERMES, '<tool_call>{"name": "f", "arguments": {"a": ' + "[" * 100),
    (HERMES, "  <tool_call>\n\n "),
    (LLAMA, '{"name": "Alice", "parameters": {}}'),
    (LLAMA, '{"name": "f"}'),
    (LLAMA, 'As JSON: {"name": "f", "parameters": {}}'),
    (LLAMA, "{a"),
    (MISTRAL, '[TOOL_CALLS] [{"name": "f", "arguments": {}}, {"name": "unknown", "arguments": {}}]'),
    (MISTRAL, '[TOOL_CALLS] [{"name": "f", "arguments": {}},]'),
    (MISTRAL, "[TOOL_CALLS] []"),
    (MISTRAL, "[TOOL_CALLS] two words {}"),
    (MISTRAL, "[TOOL_CALLS]" + "x" * 1000),
    (PYTHONIC, "[1, 2]"),
    (PYTHONIC, "[unknown(a=1)]"),
    (PYTHONIC, "[f(1)]"),
    (PYTHONIC, "[f(**a)]"),
    (PYTHONIC, "[f(a=b)]"),
    (PYTHONIC, "[f(a={1})]"),
    (PYTHONIC, "[f(a=1e999)]"),
    (PYTHONIC, "[f(a=1), unknown(a=1)]"),
    (PYTHONIC, "[f(a=1), 2]"),
    (PYTHONIC, "[f(a=1"),
    (PYTHONIC, "[f(a=1]"),
    (PYTHONIC, "[f(a='b)]"),
    (PYTHONIC, "[f(a=" + "[" * 100),
    (PYTHONIC, "[f(a=1)] # [f(a=1)]"[::-1]),
]  # fmt: skip


@pytest.mark.parametrize(("tool_format", "text", "rest", "calls"), CALLS)
def test_calls_are_read_one_character_at_a_time_as_at_once(
    tool_format: ToolFormat, text: str, rest: str, calls: list[tuple[str, str]]
) -> None:
    assert parsed(tool_format, [text]) == (rest, calls)
    assert parsed(tool_format, list(text)) == (rest, calls)


@pytest.mark.parametrize(("tool_format", "text"), LOOKS_LIKE_A_CALL)
def test_what_merely_looks_like_a_call_is_text(tool_format: ToolFormat, text: str) -> None:
    assert parsed(tool_format, [text]) == (text, [])
    assert parsed(tool_format, list(text)) == (text, [])


PARTS = [
    "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "<tool", '{"name": "f", ', '"arguments": ',
    '"parameters": ', '{"a": 1}', "{", "}", "[", "]", ", ", "; ", '"', "\\", "\n", " ", "f", "f(a=1)", "[f(a=1)]",
    '[{"name": "f", "arguments": {}}]', '{"name": "f", "parameters": {}}', CALL, "1.5e3", "null", "é", "text",
]  # fmt: skip
NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
VALUES: st.SearchStrategy[object] = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
ARGUMENTS = st.dictionaries(st.text(), VALUES)
TEXTS = st.lists(st.one_of(st.sampled_from(PARTS), st.text(max_size=4)), max_size=12).map("".join)


@settings(max_examples=examples(300), deadline=None)
@given(text=TEXTS, tool_format=st.sampled_from(list(TOOL_FORMATS.values())), data=st.data())
def test_chunks_do_not_matter(text: str, tool_format: ToolFormat, data: st.DataObject) -> None:
    whole, calls = parsed(tool_format, [text])
    assert parsed(tool_format, data.draw(chunks(text))) == (whole, calls)
    assert parsed(tool_format, list(text)) == (whole, calls)
    if not calls:
        assert whole == text
    for _, arguments in calls:
        assert isinstance(json.loads(arguments), dict)


@settings(max_examples=examples(100), deadline=None)
@given(arguments=ARGUMENTS, escaped=st.booleans())
def test_any_arguments_come_through(arguments: dict[str, object], escaped: bool) -> None:
    written = json.dumps(arguments, ensure_ascii=escaped)
    for tool_format, text in (
        (HERMES, f'<tool_call>{{"name": "f", "arguments": {written}}}</tool_call>'),
        (LLAMA, f'{{"name": "f", "parameters": {written}}}'),
        (MISTRAL, f'[TOOL_CALLS][{{"name": "f", "arguments": {written}}}]'),
        (MISTRAL, f"[TOOL_CALLS]f[ARGS]{written}"),
    ):
        rest, [(_, found)] = parsed(tool_format, [text])
        assert (rest, json.loads(found)) == ("", arguments)


def test_text_that_cannot_be_a_call_is_not_delayed() -> None:
    parser = HERMES.new_parser({"f"})
    assert [piece.text for piece in parser.push("a < b") if not hasattr(piece, "name")] == ["a < b"]
    assert parser.push("<tool_call>") == []
    assert [piece.text for piece in parser.push(" is") if not hasattr(piece, "name")] == ["<tool_call> i", "s"]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{% if tools %}<tool_call>{{ tools }}</tool_call>", "hermes"),
        ("[AVAILABLE_TOOLS]{{ tools }}[TOOL_CALLS]", "mistral"),
        (
            'Respond with {"name": function name, "parameters": dictionary of argument name and its value}',
            "llama3-json",
        ),
        ("in the format of [func_name1(params_name1=params_value1)]", "pythonic"),
        ("<tool_call>\n<function=example>\n<parameter=one>", None),
        ("{{ messages }}", None),
    ],
)
def test_a_template_names_its_format(template: str, expected: str | None) -> None:
    found = format_in_template(template)
    assert (None if found is None else found.name) == expected


def test_ids_are_as_templates_want_them() -> None:
    assert HERMES.new_id().startswith("call_")
    assert len(MISTRAL.new_id()) == 9
    assert MISTRAL.new_id().isalnum()
