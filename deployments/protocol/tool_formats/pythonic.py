"""The Pythonic format: the answer is a list of calls in Python, ``[NAME(argument=value, …), …]``.

Llama 4 and models tuned on the format of the Berkeley function-calling leaderboard write it. Source: Meta's
documentation of Llama 4 and Llama 3.2.
"""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Container
from typing import Any

from deployments.protocol.tool_formats.interface import Attempt, FoundCall, LeadingParser, NotACallError, ToolFormat
from deployments.protocol.tool_formats.json_reader import SPACE, Reading, expect, skip_space

_DEEPEST = 64
_PAIRS = {"(": ")", "[": "]", "{": "}"}


class Pythonic(ToolFormat):
    """The format of Llama 4."""

    name = "pythonic"

    def in_template(self, template: str) -> bool:
        return "[func_name1(" in template

    def new_parser(self, functions: Container[str]) -> PythonicParser:
        return PythonicParser(self, functions)


class PythonicParser(LeadingParser):
    """Parser of answers that are lists of calls."""

    opening = "["

    def new_attempt(self) -> Attempt:
        written = yield from self._name((yield from skip_space()))
        written += yield from _rest_of_list()
        try:
            parsed = ast.parse(f"[{written}", mode="eval").body
            assert isinstance(parsed, ast.List)
            calls = [_call(one) for one in parsed.elts]
        except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
            raise NotACallError from error
        expect(all(call.name in self.functions for call in calls))
        return calls

    def _name(self, char: str) -> Reading[str]:
        """Name of the first function with its opening bracket; it is checked at once, as prose may begin with one."""
        name = ""
        while char != "(" and char not in SPACE:
            expect(char.isalnum() or char in "_.")
            name += char
            char = yield
        expect(name in self.functions)
        expect((char if char == "(" else (yield from skip_space())) == "(")
        return f"{name}("


def _rest_of_list() -> Reading[str]:
    """Text up to the bracket that closes the list; the bracket of the first call is open already."""
    written, closing, quote = "", ["]", ")"], ""
    while closing:
        written += (char := (yield))
        if quote:
            if char == "\\":
                written += yield
            elif char == quote or char == "\n":
                expect(char == quote)
                quote = ""
        elif char in "'\"":
            quote = char
        elif char in _PAIRS:
            closing.append(_PAIRS[char])
            expect(len(closing) < _DEEPEST)
        elif char in ")]}":
            expect(char == closing.pop())
        else:
            expect(char != "#")
    return written


def _call(node: ast.expr) -> FoundCall:
    if not isinstance(node, ast.Call) or node.args:
        raise NotACallError
    arguments = {one.arg: _value(one.value) for one in node.keywords if one.arg is not None}
    expect(len(arguments) == len(node.keywords))
    return FoundCall(ast.unparse(node.func), json.dumps(arguments))


def _value(node: ast.expr) -> Any:
    """Value of a literal that JSON has too.

    Raises:
        ValueError: it is no literal.
        NotACallError: JSON does not have it.
    """
    value = ast.literal_eval(node)
    expect(_is_json(value))
    return value


def _is_json(value: Any) -> bool:
    if isinstance(value, list):
        return all(map(_is_json, value))
    if isinstance(value, dict):
        return all(isinstance(name, str) and _is_json(one) for name, one in value.items())
    return value is None or isinstance(value, str | bool | int) or (isinstance(value, float) and math.isfinite(value))
