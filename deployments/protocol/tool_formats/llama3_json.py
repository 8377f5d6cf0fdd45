"""Llama 3's format: the answer is ``{"name": NAME, "parameters": OBJECT}``, or several of these, with semicolons.

Source: Meta's documentation of Llama 3.1 (JSON based tool calling) and the chat template of Llama 3.1 to 3.3.
"""

from __future__ import annotations

from collections.abc import Container

from deployments.protocol.tool_formats.interface import Attempt, CallFrame, LeadingParser, ToolFormat
from deployments.protocol.tool_formats.json_reader import call_in, expect, read_object


class Llama3Json(ToolFormat):
    """The format of Llama 3.1 to 3.3."""

    name = "llama3-json"
    frame = CallFrame("", "", "; ", "parameters")

    def in_template(self, template: str) -> bool:
        return '"parameters": dictionary of argument name' in template

    def new_parser(self, functions: Container[str]) -> Llama3JsonParser:
        return Llama3JsonParser(self, functions)


class Llama3JsonParser(LeadingParser):
    """Parser of answers that are objects."""

    opening = "{"
    separators = ";"

    def new_attempt(self) -> Attempt:
        call = call_in((yield from read_object()), "parameters", "arguments")
        expect(call.name in self.functions)
        return [call]
