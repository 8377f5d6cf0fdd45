"""Extraction of the code in a chat model's answer.

The result can follow a function's signature and docstring as a completion.
"""

from __future__ import annotations

import ast
import re
import textwrap
import warnings

_FENCE = re.compile(r"^[ \t]*```[^\n`]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)
_CODE_START = re.compile(r"^(?:def|class|import|from|async|@)\b|^@")
_INDENT = "    "
# Completes the prompt's unfinished function, so that a full definition in the answer can replace it.
_CLOSE_OPEN_FUNCTION = "\n    pass\n\n\n"


def extract_completion(text: str, prompt: str, entry_point: str) -> str:
    """Extract the text to append to `prompt` to get a program: a new definition of `entry_point`, or its body.

    The answer may have fenced blocks or bare code, the whole function or only its body, and prose before and after. It
    may be truncated; lines at its end that do not parse are dropped. Returns '' if there is no code.
    """
    if (code := extract_definition(text, entry_point)) is not None:
        return _CLOSE_OPEN_FUNCTION + code
    body = next(iter(_blocks(text)), text)
    return max(
        (_longest_program(prompt, candidate) for candidate in _as_bodies(body)), key=lambda program: program.count("\n")
    )


def extract_definition(text: str, entry_point: str) -> str | None:
    """Extract the code that defines `entry_point`, up to the last line that parses; None if there is none."""
    starts = re.compile(rf"^(?:async )?def {re.escape(entry_point)}\b", re.MULTILINE)
    for code in [*_blocks(text), _from_first_code_line(text)]:
        if starts.search(code):
            return _longest_program("", code)
    return None


def _blocks(text: str) -> list[str]:
    return [textwrap.dedent(block) for block in _FENCE.findall(text)]


def _from_first_code_line(text: str) -> str:
    lines = text.splitlines(keepends=True)
    for number, line in enumerate(lines):
        if _CODE_START.match(line):
            return "".join(lines[number:])
    return ""


def _as_bodies(code: str) -> list[str]:
    """Candidate indentations of a body, the likeliest first: unchanged, with the indent that its first line often
    loses, or with all lines moved to one level."""
    code = code.strip("\n") + "\n"
    first, _, rest = code.partition("\n")
    moved = "\n" + textwrap.indent(textwrap.dedent(code), _INDENT)
    if first[:1].isspace():
        return ["\n" + code, moved]
    if all(line[:1].isspace() for line in rest.splitlines() if line):
        return [f"\n{_INDENT}{code}", moved]
    return [moved]


def _longest_program(prefix: str, code: str) -> str:
    """The longest run of leading lines of `code` that parses after `prefix`; '' if none does."""
    lines = code.splitlines(keepends=True)
    offset = prefix.count("\n")
    while lines:
        wrong = _wrong_line(prefix + "".join(lines))
        if wrong is None:
            return "".join(lines)
        lines = lines[: max(0, min(len(lines) - 1, wrong - offset - 1))]
    return ""


def _wrong_line(program: str) -> int | None:
    """Number (from 1) of the line with the first syntax error; None if the whole program parses."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ast.parse(program)
    except SyntaxError as error:
        return error.lineno or 1
    except (ValueError, RecursionError, MemoryError):
        return 1
    return None
