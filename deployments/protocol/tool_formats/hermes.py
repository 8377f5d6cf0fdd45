"""Hermes' format, also Qwen's: ``<tool_call>{"name": NAME, "arguments": OBJECT}</tool_call>`` for each call.

It is also the default for models whose chat template takes no tools, see :mod:`deployments.protocol.chat_prompt`.
Source: the model cards of NousResearch's Hermes 2 Pro and the chat templates of Qwen2.5 and Qwen3.
"""

from __future__ import annotations

from collections.abc import Container

from deployments.protocol.tool_formats.interface import Attempt, CallFrame, TaggedParser, ToolFormat
from deployments.protocol.tool_formats.json_reader import call_in, expect, read_object, read_text, skip_space

OPEN, CLOSE = "<tool_call>", "</tool_call>"


class Hermes(ToolFormat):
    """The format of Hermes and Qwen."""

    name = "hermes"
    markers = (OPEN, CLOSE)
    frame = CallFrame(f"{OPEN}\n", f"\n{CLOSE}", "\n")

    def in_template(self, template: str) -> bool:
        # Qwen3-Coder and GLM write calls between the same tags, but as XML.
        return OPEN in template and "<function=" not in template and "<arg_key>" not in template

    def new_parser(self, functions: Container[str]) -> HermesParser:
        return HermesParser(self, functions)


class HermesParser(TaggedParser):
    """Parser of calls between tags."""

    tag = OPEN

    def new_attempt(self) -> Attempt:
        expect((yield from skip_space()) == "{")
        call = call_in((yield from read_object()), "arguments")
        expect(call.name in self.functions and (yield from skip_space()) == CLOSE[0])
        yield from read_text(CLOSE[1:])
        return [call]
