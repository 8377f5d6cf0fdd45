"""MATH-500: competition mathematics, scored by exact match of the last ``\\boxed`` answer in a normal form."""

from __future__ import annotations

import re
from typing import Annotated, ClassVar

from pydantic import BaseModel, StringConstraints, field_validator

from entmtp.suites.base import HubDataset, Prompt, Suite
from entmtp.suites.protocols import PROTOCOLS, Protocol

_BOX = re.compile(r"\\(?:boxed|fbox)\s*")
_DROPPED = re.compile(r"\\(?:left|right)(?![a-zA-Z])|(?<!\\)\\[!,;: ]|\\displaystyle|\\?[$%]|\^\{?\\circ\}?|~|\s+")
_WORDS = re.compile(r"\\(?:text|mbox|textbf|mathrm|textrm)\s*\{([^{}]*)\}")
_UNIT = re.compile(r"(?<=[0-9}])(?:\\?\s)*\\(?:text|mbox|mathrm|textrm)\s*\{[^{}]*\}(?:\^\{?[0-9]\}?)?$")
_SHORT_FRACTION = re.compile(r"\\frac(?:\{([^{}]+)\}([^{}\\])|([^{}\\])\{([^{}]+)\}|([^{}\\])([^{}\\]))")
_SHORT_ROOT = re.compile(r"\\sqrt([^{\[\\])")
_SLASH = re.compile(r"(-?)([0-9]+)/([0-9]+)")
_NAMED = re.compile(r"[a-zA-Z](?:=|\\in(?![a-zA-Z]))(?=[^=]+$)")
_GROUPED = re.compile(r"-?[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?")


def boxed(text: str) -> str | None:
    r"""Content of the last ``\boxed{…}``, or of a ``\boxed`` without braces; None without one.

    A box that the end of the text truncates is ignored.
    """
    for found in reversed(list(_BOX.finditer(text))):
        rest = text[found.end() :]
        content = _braced(rest) if rest.startswith("{") else re.match(r"[^\s$\\{}]+", rest)
        if content is not None:
            return content if isinstance(content, str) else content[0]
    return None


def _braced(text: str) -> str | None:
    """Content between the first brace and the one that closes it; None if none does."""
    depth = 0
    for at, character in enumerate(text):
        depth += {"{": 1, "}": -1}.get(character, 0) if text[at - 1 : at] != "\\" else 0
        if depth == 0:
            return text[1:at]
    return None


def normalised(answer: str) -> str:
    r"""Normal form of an answer, in which two ways to write it are the same text.

    It covers the variations of the data set's answers: spaces, ``\left`` and ``\right``, ``\dfrac``, units in words,
    degrees, dollars and percent, ``x = 5``, ``\frac12``, ``1/2``, ``.5`` and ``1,000``. It does no algebra.
    """
    answer = _UNIT.sub("", answer.rstrip(" $.\n"))
    answer = _WORDS.sub(r"\1", answer).replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")
    answer = _DROPPED.sub("", answer)
    if named := _NAMED.match(answer):
        answer = answer[named.end() :]
    answer = _SHORT_FRACTION.sub(_whole_fraction, answer)
    answer = _SHORT_ROOT.sub(r"\\sqrt{\1}", answer)
    if slashed := _SLASH.fullmatch(answer):
        answer = f"{slashed[1]}\\frac{{{slashed[2]}}}{{{slashed[3]}}}"
    if _GROUPED.fullmatch(answer):
        answer = answer.replace(",", "")
    return re.sub(r"(?<![0-9])\.(?=[0-9])", "0.", answer)


def _whole_fraction(short: re.Match[str]) -> str:
    top, bottom = (part for part in short.groups() if part is not None)
    return f"\\frac{{{top}}}{{{bottom}}}"


class Math500Row(BaseModel):
    """Columns on the hub that are used."""

    problem: Annotated[str, StringConstraints(pattern=r"\S")]
    answer: str
    subject: str | None = None
    level: int | str | None = None

    @field_validator("answer")
    @classmethod
    def _is_not_blank(cls, answer: str) -> str:
        if not normalised(answer):
            raise ValueError("it is blank")
        return answer


class Math500(Suite[Math500Row]):
    """`math500`: competition problems."""

    name: str = "math500"
    family: str = "math500"
    protocol: Protocol = PROTOCOLS["math500"]
    hub: HubDataset | None = HubDataset("HuggingFaceH4/MATH-500", "test")
    row_type: ClassVar[type[BaseModel]] = Math500Row
    file: str = "the hub's test.jsonl"

    def prompts(self, row: Math500Row, number: int) -> list[Prompt]:
        """The problem with the usual request for a box; the reference has its subject and level, if there are any."""
        text = self.protocol.template.format(problem=row.problem.strip())
        known = {"answer": row.answer, "subject": row.subject, "level": row.level}
        reference = {name: str(value) for name, value in known.items() if value is not None}
        return [Prompt(f"{self.name}/{number}", self.name, text, reference, key=row.problem.strip())]

    def score(self, prompt: Prompt, text: str) -> float:
        """1.0 if the last boxed answer and the reference have the same normal form, else 0.0."""
        given = boxed(text)
        return float(given is not None and normalised(given) == normalised(prompt.reference["answer"]))
