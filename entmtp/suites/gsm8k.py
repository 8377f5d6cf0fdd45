"""GSM8K: grade-school word problems, scored by exact match of the final number, with or without worked examples.

The worked examples are the project's own, in GSM8K's form. They are in no data set, so none of them is ever scored.
"""

from __future__ import annotations

import re
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import BaseModel, StringConstraints, field_validator

from entmtp.errors import EntMTPError
from entmtp.json_lines import read_json_lines
from entmtp.suites.base import HubDataset, Prompt, Suite
from entmtp.suites.protocols import PROTOCOLS, SHOT, Protocol

_EXAMPLES = Path(__file__).parent / "samples" / "gsm8k_shots.jsonl"

# A minus is a sign only if nothing precedes it ('16-3' ends in 3); a comma counts only between groups of three digits.
_NUMBER = (
    r"(?P<sign>(?<![\w.)])[-−])?[$€£]?(?P<digits>(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)"
)
_ANY_NUMBER = re.compile(_NUMBER)
_MARKED_ANSWER = re.compile(r"####[ \t*]*" + _NUMBER)


def final_number(text: str) -> Decimal | None:
    """The number after the first `####`, else the last number of the text; None if it has none.

    The first mark is used, not the last, because a model that does not stop may go on with a problem of its own.
    """
    found = _MARKED_ANSWER.search(text) or max(_ANY_NUMBER.finditer(text), key=re.Match.start, default=None)
    if found is None:
        return None
    value = Decimal(found["digits"].replace(",", ""))
    return -value if found["sign"] else value


class Gsm8kRow(BaseModel):
    """Columns on the hub; the answer ends in a line `#### N`."""

    question: Annotated[str, StringConstraints(min_length=1)]
    answer: str

    @field_validator("answer")
    @classmethod
    def _has_final_number(cls, answer: str) -> str:
        if _MARKED_ANSWER.search(answer) is None:
            raise ValueError("it must end in a line '#### N' with the final number")
        return answer


@cache
def _shots(count: int) -> str:
    """The first `count` worked examples, formatted as the text before a question."""
    rows = [row for _, row in read_json_lines(_EXAMPLES)]
    if not 1 <= count <= len(rows):
        raise EntMTPError(
            f"suite gsm8k-{count}-shot: there are {len(rows)} worked examples; ask for gsm8k-1-shot to"
            f" gsm8k-{len(rows)}-shot, or gsm8k for none"
        )
    return "".join(SHOT.format(**row) for row in rows[:count])


class Gsm8k(Suite[Gsm8kRow]):
    """`gsm8k` is 0-shot; `gsm8k-N-shot` has N worked examples before the question."""

    family: str = "gsm8k"
    hub: HubDataset | None = HubDataset("openai/gsm8k", "test", config="main")
    row_type: ClassVar[type[BaseModel]] = Gsm8kRow

    def __init__(self, shots: int | None = None) -> None:
        self.name: str = "gsm8k" if shots is None else f"gsm8k-{shots}-shot"
        self.protocol: Protocol = PROTOCOLS["gsm8k" if shots is None else "gsm8k-N-shot"]
        self._shots = "" if shots is None else _shots(shots)

    def prompts(self, row: Gsm8kRow, number: int) -> list[Prompt]:
        question = row.question.strip()
        text = self.protocol.template.format(question=question, shots=self._shots)
        return [Prompt(f"{self.name}/{number}", self.name, text, {"answer": row.answer}, key=question)]

    def score(self, prompt: Prompt, text: str) -> float:
        """1.0 if the answer's final number equals the reference's, else 0.0."""
        return float(final_number(text) == final_number(prompt.reference["answer"]))
