"""Chat templates: tools, calls, reasoning and variables reach a template as it takes them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from deployments.engines.chat_template import ChatTemplate
from deployments.protocol.chat_turns import Chat
from deployments.protocol.errors import ApiError
from deployments.protocol.schema import ChatRequest, Message
from deployments.protocol.tools import Tool
from deployments.settings import EngineArgs

DUMP = "{% for message in messages %}{{ message | tojson }}\n{% endfor %}"
NATIVE = "{% if tools %}<tool_call>{{ tools | tojson }}\n{% endif %}" + DUMP
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
TURNS: list[dict[str, Any]] = [
    {"role": "developer", "content": "Be short."},
    {"role": "user", "content": "Go."},
    {"role": "assistant", "content": None, "tool_calls": [CALL, CALL], "reasoning_content": "Hm."},
    {"role": "tool", "content": "one", "tool_call_id": "1"},
    {"role": "tool", "content": [{"type": "text", "text": "two"}], "tool_call_id": "1"},
    {"role": "user", "content": "And?"},
]


def template(text: Any, special: tuple[str, ...] = (), **settings: Any) -> ChatTemplate:
    names = ["<unk>", "<end>", *special]
    tokenizer = Tokenizer(models.WordLevel({name: at for at, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer.add_special_tokens(list(special))
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", unk_token="<unk>", chat_template=text)
    return ChatTemplate(made, EngineArgs.parse(name="e", model_name="m", **settings))


def chat(turns: list[dict[str, Any]], **more: Any) -> Chat:
    return Chat.of(ChatRequest.model_validate({"model": "m", "messages": turns} | more))


def rendered(text: Any, turns: list[dict[str, Any]] = TURNS[1:2], **more: Any) -> str:
    return template(text).render(chat(turns, **more))


def test_a_template_that_knows_tools_gets_them_as_they_are() -> None:
    tools, *turns = map(json.loads, rendered(NATIVE, TURNS, tools=[TOOL]).removeprefix("<tool_call>").splitlines())
    assert tools[0]["function"] == {"name": "f", "description": "", "parameters": {"type": "object"}}
    assert [turn["role"] for turn in turns] == ["system", "user", "assistant", "tool", "tool", "user"]
    assert turns[2]["tool_calls"][0]["function"] == {"name": "f", "arguments": {"a": 1}}
    assert (turns[2]["content"], turns[2]["reasoning_content"]) == ("", "Hm.")
    assert (turns[4]["content"], turns[4]["tool_call_id"]) == ("two", "1")


def test_any_other_template_gets_text_alone() -> None:
    turns = [json.loads(line) for line in rendered(DUMP, TURNS, tools=[TOOL]).splitlines()]
    assert [turn["role"] for turn in turns] == ["system", "user", "assistant", "user"]
    system = turns[0]["content"]
    assert system.startswith("Be short.\n\nYou can call")
    (signature,) = [line for line in system.splitlines() if line.startswith('{"type"')]
    assert json.loads(signature)["function"]["name"] == "f"
    call = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
    assert turns[2]["content"] == f"{call}\n{call}"
    results = [f"<tool_response>\n{one}\n</tool_response>" for one in ("one", "two")]
    assert turns[3]["content"] == "\n".join([*results, "And?"])


def test_the_description_makes_a_system_message_where_there_is_none() -> None:
    first, second = map(json.loads, rendered(DUMP, tools=[TOOL]).splitlines())
    assert (first["role"], second) == ("system", {"role": "user", "content": "Go."})
    assert "<tools>" not in rendered(DUMP, tools=[TOOL], tool_choice="none")
    assert rendered(NATIVE, tools=[TOOL], tool_choice="none") == rendered(NATIVE)


@pytest.mark.parametrize(
    ("text", "setting", "name", "native"),
    [
        (NATIVE, "auto", "hermes", True),
        (NATIVE.replace("<tool_call>", "[TOOL_CALLS]"), "auto", "mistral", True),
        (NATIVE.replace("<tool_call>", "<function="), "auto", "hermes", False),
        (NATIVE.replace("<tool_call>", ""), "pythonic", "pythonic", True),
        (DUMP, "pythonic", "hermes", False),
        ([{"name": "default", "template": DUMP}, {"name": "tool_use", "template": NATIVE}], "auto", "hermes", True),
        ("{% generation %}" + NATIVE + "{% endgeneration %}", "auto", "hermes", True),
        ("{{ broken", "auto", "hermes", False),
    ],
)
def test_the_format_is_the_templates_or_the_settings(text: Any, setting: str, name: str, native: bool) -> None:
    made = template(text, tool_format=setting)
    assert (made.tool_format.name, made._knows_tools) == (name, native)


@pytest.mark.parametrize(
    ("text", "fields", "expected"),
    [
        ("{{ reasoning_effort }} {{ verbosity }}", {"reasoning_effort": "high", "verbosity": "low"}, "high low"),
        ("{{ style }}", {"chat_template_kwargs": {"style": "old", "unknown": 1, "tokenize": True}}, "old"),
        ("{{ reasoning_effort }}",
         {"reasoning_effort": "high", "chat_template_kwargs": {"reasoning_effort": "low"}}, "low"),
        ("{{ enable_thinking }}", {"reasoning_effort": "none"}, "False"),
        ("{{ thinking }}", {"reasoning_effort": "low"}, "True"),
        ("{{ enable_thinking }}",
         {"reasoning_effort": "none", "chat_template_kwargs": {"enable_thinking": True}}, "True"),
        ("fixed", {"reasoning_effort": "high", "verbosity": "low"}, "fixed"),
    ],
)  # fmt: skip
def test_variables_reach_templates_that_take_them(text: str, fields: dict[str, Any], expected: str) -> None:
    assert rendered(text, **fields) == expected


@pytest.mark.parametrize(
    ("text", "fields", "param"),
    [
        (DUMP, {"chat_template_kwargs": {"documents": []}}, "chat_template_kwargs.documents"),
        ("{{ raise_exception('No.') }}", {}, "messages"),
        ("{{ 'a' + style }}", {"chat_template_kwargs": {"style": {}}}, "messages"),
    ],
)  # fmt: skip
def test_what_a_template_cannot_take_is_a_clients_mistake(text: str, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as refusal:
        rendered(text, **fields)
    assert (refusal.value.status, refusal.value.param) == (400, param)
    assert refusal.value.message.startswith(f"{param}: ")


@pytest.mark.parametrize(
    ("text", "setting", "prompt", "expected"),
    [
        ("<think>", "auto", "", (True, False)),
        ("</think>", "auto", "x<think>\n", (True, True)),
        (DUMP, "auto", "<think>", (False, False)),
        (DUMP, "think", "<think>", (True, True)),
        ("<think>", "none", "<think>", (False, False)),
    ],
)
def test_reasoning_is_read_where_the_template_has_it(
    text: str, setting: str, prompt: str, expected: tuple[bool, bool]
) -> None:
    found = template(text, reasoning_format=setting).answer_format(chat(TURNS[1:2]), prompt)
    assert (found.reasons, found.opens_reasoning) == expected


def test_special_tokens_of_a_format_are_its_markers() -> None:
    made = template(NATIVE.replace("<tool_call>", "[TOOL_CALLS]<think>"), ("[TOOL_CALLS]", "<think>", "<other>"))
    tools = [Tool.model_validate(TOOL)]
    messages = [Message(role="user", content="x")]
    assert made.answer_format(Chat(messages, tools), "").markers == {2: "[TOOL_CALLS]", 3: "<think>"}
    assert made.answer_format(Chat(messages), "").markers == {3: "<think>"}
