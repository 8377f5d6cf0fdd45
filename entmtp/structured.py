"""Constraint on an answer's text: a JSON schema, a regular expression, a choice of texts or a grammar."""

from __future__ import annotations

import json as json_library
from collections.abc import Mapping, Sequence
from dataclasses import InitVar, dataclass, field
from typing import Any, Literal

from entmtp.errors import EntMTPError, quoted

Kind = Literal["json", "regex", "choice", "grammar"]

MAX_CHARACTERS: dict[Kind, int] = {"json": 65_536, "regex": 8_192, "choice": 65_536, "grammar": 65_536}
"""Length of the longest constraint of each kind. The time of a step rises with the length of a forced text."""

MAX_CHOICES = 4_096

JSON_LAYOUT = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False}
"""Layout of constrained JSON: one line, as ``json.dumps`` writes it. So all but the values follows from the schema."""


@dataclass(frozen=True)
class Structured:
    """Form of an answer's text; exactly one of the five is given.

    Attributes:
        kind, source: what was given, as text: a JSON schema, an expression, a JSON list of texts, or a grammar.
        field_name: name of the request's field in errors.

    Args:
        json: a JSON schema, as an object or as text.
        json_object: any JSON object.
        regex: regular expression that the whole text matches, in the syntax of Rust's ``regex`` without look-around.
        choice: texts of which the answer is one.
        grammar: context-free grammar in Lark's syntax as llguidance reads it, or in GBNF. Its first rule is ``start``
            or ``root``.

    Raises:
        EntMTPError: if not exactly one is given, or it is malformed or too long.
    """

    json: InitVar[Mapping[str, Any] | bool | str | None] = None
    json_object: InitVar[bool] = False
    regex: InitVar[str | None] = None
    choice: InitVar[Sequence[str] | None] = None
    grammar: InitVar[str | None] = None
    field_name: str = field(default="structured", compare=False)
    kind: Kind = field(init=False)
    source: str = field(init=False)

    def __post_init__(
        self,
        json: Mapping[str, Any] | bool | str | None,
        json_object: bool,
        regex: str | None,
        choice: Sequence[str] | None,
        grammar: str | None,
    ) -> None:
        given: dict[str, Any] = {
            name: value
            for name, value in (
                ("json", json),
                ("json_object", json_object or None),
                ("regex", regex),
                ("choice", choice),
                ("grammar", grammar),
            )
            if value is not None
        }
        if len(given) != 1:
            found = " and ".join(given) or "nothing"
            raise EntMTPError(
                f"{self.field_name}: {found} is given; give one of json, json_object, regex, choice and grammar"
            )
        ((name, value),) = given.items()
        kind: Kind = "json" if name == "json_object" else name  # type: ignore[assignment]
        source = self._source(name, value)
        if not source:
            raise EntMTPError(f"{self.field_name}: the {kind} is empty; give one that some text fits")
        if len(source) > (most := MAX_CHARACTERS[kind]):
            raise EntMTPError(f"{self.field_name}: {len(source)} characters are more than {most}, the most of a {kind}")
        object.__setattr__(self, "kind", kind)
        object.__setattr__(self, "source", source)

    def _source(self, name: str, value: Any) -> str:
        if name == "json_object":
            return json_library.dumps({"type": "object"})
        if name == "json":
            return self._schema(value)
        if name == "choice":
            return self._choices(value)
        if not isinstance(value, str):
            raise EntMTPError(f"{self.field_name}: {quoted(value)} is not a {name}; give a text")
        return value

    def _schema(self, schema: Any) -> str:
        try:
            if isinstance(schema, str):
                # The length is checked before the work: a long text is refused below in any case.
                schema = json_library.loads(schema) if len(schema) <= MAX_CHARACTERS["json"] else {"const": schema}
            text = json_library.dumps(schema, ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise EntMTPError(f"{self.field_name}: {quoted(schema)} is not JSON; give a JSON schema") from error
        if schema is True:
            return "{}"
        if not isinstance(schema, Mapping):
            raise EntMTPError(f"{self.field_name}: {quoted(schema)} is not a JSON schema; give an object")
        return text

    def _choices(self, choices: Any) -> str:
        texts = [] if isinstance(choices, str) or not isinstance(choices, Sequence) else list(choices)
        wrong = next((one for one in texts if not isinstance(one, str) or not one), None)
        if not texts or wrong is not None or len(texts) > MAX_CHOICES:
            named = quoted(choices if not texts else wrong) if len(texts) <= MAX_CHOICES else f"a list of {len(texts)}"
            raise EntMTPError(f"{self.field_name}: {named} is not a choice; give a list of 1 to {MAX_CHOICES} texts")
        return json_library.dumps(texts, ensure_ascii=False)


def lark_literal(text: str) -> str:
    """A text as a literal in the rules of a Lark grammar."""
    return json_library.dumps(text, ensure_ascii=False)


def lark_json(schema: Mapping[str, Any]) -> str:
    """A JSON value by its schema as the body of a rule of a Lark grammar, in the usual layout."""
    return f"%json {json_library.dumps({**schema, 'x-guidance': JSON_LAYOUT}, ensure_ascii=False)}"


def framed_json(before: str, schema: Mapping[str, Any], after: str, field_name: str = "structured") -> Structured:
    """A JSON value by its schema between two literal texts, such as ``<tool_call>`` and ``</tool_call>``."""
    ends = [lark_literal(text) if text else "" for text in (before, after)]
    return Structured(grammar=f"start: {ends[0]} value {ends[1]}\nvalue: {lark_json(schema)}\n", field_name=field_name)
