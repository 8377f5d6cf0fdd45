"""GSM8K: grade-school word problems, scored by exact match of the final number."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Annotated, ClassVar

from pydantic import BaseModel, StringConstraints, field_validator

from entmtp.evaluation.suites.base import HubDataset, Prompt, Suite

# A minus is a sign only where nothing stands before it ('16-3' ends in 3), a comma only between groups of three digits.
_NUMBER = (
    r"(?P<sign>(?<![\w.)])[-−])?[$€£]?(?P<digits>(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)"
)
_ANY_NUMBER = re.compile(_NUMBER)
_MARKED_ANSWER = re.compile(r"####[ \t*]*" + _NUMBER)


def final_number(text: str) -> Decimal | None:
    """The number after the first `####`, else the last number of the text; None where it holds none.

    The first mark and not the last, because a model that does not stop may go on to invent the next problem.
    """
    found = _MARKED_ANSWER.search(text) or max(_ANY_NUMBER.finditer(text), key=re.Match.start, default=None)
    if found is None:
        return None
    value = Decimal(found["digits"].replace(",", ""))
    return -value if found["sign"] else value


class Gsm8kRow(BaseModel):
    """The hub's columns; the answer ends in a line `#### N`."""

    question: Annotated[str, StringConstraints(min_length=1)]
    answer: str

    @field_validator("answer")
    @classmethod
    def _has_final_number(cls, answer: str) -> str:
        if _MARKED_ANSWER.search(answer) is None:
            raise ValueError("it must end in a line '#### N' with the final number")
        return answer


class Gsm8k(Suite[Gsm8kRow]):
    name: ClassVar[str] = "gsm8k"
    hub: ClassVar[HubDataset] = HubDataset("openai/gsm8k", "test", config="main")
    row_type: ClassVar[type[BaseModel]] = Gsm8kRow
    metric: ClassVar[str | None] = "exact match"

    def prompt(self, row: Gsm8kRow, number: int) -> Prompt:
        return Prompt(f"{self.name}/{number}", self.name, row.question.strip(), {"answer": row.answer})

    def score(self, prompt: Prompt, text: str) -> float:
        """1.0 where the answer's final number equals the reference's, else 0.0."""
        return float(final_number(text) == final_number(prompt.reference["answer"]))
