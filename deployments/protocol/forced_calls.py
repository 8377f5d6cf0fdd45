"""The form of an answer that must call a function, as a grammar."""

from __future__ import annotations

import re

from deployments.protocol.answer_format import AnswerFormat
from deployments.protocol.reasoning import CLOSE, OPEN
from deployments.protocol.tool_formats.constraint import CallConstraint
from entmtp.structured import Structured, lark_json, lark_literal


def forced_calls(constraint: CallConstraint, answer_format: AnswerFormat) -> Structured:
    """Form of an answer that consists of calls, after reasoning if the model writes any.

    Raises:
        EntMTPError: the functions' schemas are too long.
    """
    tokens = {name: f"<[{id}]>" for id, name in answer_format.markers.items()}
    more = "" if constraint.separator is None else f"({_fixed(constraint.separator, tokens)} call)*"
    rules = [
        f"start: {_reasoning(answer_format, tokens)} call {more}",
        f"call: {_fixed(constraint.begin, tokens)} value {_fixed(constraint.end, tokens)}",
        f"value: {lark_json(constraint.schema)}",
    ]
    if answer_format.reasons:
        rules += [_thought(tokens), "SPACE: /[ \\n]{0,4}/"]
    return Structured(grammar="\n".join(rules) + "\n", field_name="tools")


def _reasoning(answer_format: AnswerFormat, tokens: dict[str, str]) -> str:
    """Reasoning before the calls; the model decides whether there is any, unless the prompt has opened it."""
    if not answer_format.reasons:
        return ""
    return "thought SPACE" if answer_format.opens_reasoning else f"({_fixed(OPEN, tokens)} thought SPACE)?"


def _thought(tokens: dict[str, str]) -> str:
    """Rule of any text up to the end of reasoning, which may be a token without a text."""
    if CLOSE in tokens:
        return f"thought: /(.|\\n)*/ {tokens[CLOSE]}"
    return f"thought[suffix={lark_literal(CLOSE)}]: /(.|\\n)*/"


def _fixed(text: str, tokens: dict[str, str]) -> str:
    """A fixed text as the body of a rule; names of special tokens in it stand for these tokens."""
    if not tokens:
        return lark_literal(text) if text else ""
    parts = re.split(f"({'|'.join(map(re.escape, tokens))})", text)
    return " ".join(tokens.get(part) or lark_literal(part) for part in parts if part)
