"""MT-bench: eighty questions of two turns each; no automatic score, the answers are stored for judges."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import BaseModel, Field, StringConstraints

from entmtp.suites.base import Prompt, Suite
from entmtp.suites.protocols import PROTOCOLS, Protocol

Text = Annotated[str, StringConstraints(strip_whitespace=False, pattern=r"\S")]


class QuestionRow(BaseModel):
    """One line of FastChat's `question.jsonl`."""

    question_id: int | str
    category: str
    turns: Annotated[list[Text], Field(min_length=1)]
    reference: list[str | None] | str | None = None


def prompts_of_turns(suite: Suite[QuestionRow], row: QuestionRow) -> list[Prompt]:
    """A prompt for each turn. Its history has the earlier turns without answers, which the model generates."""
    prompts = []
    for index, turn in enumerate(row.turns):
        reference = {"category": row.category}
        if answer := _reference_of(row.reference, index):
            reference["reference"] = answer
        history = tuple(("user", suite.protocol.template.format(turn=earlier)) for earlier in row.turns[:index])
        id = f"{suite.family}/{row.question_id}/{index + 1}"
        text = suite.protocol.template.format(turn=turn)
        prompts.append(Prompt(id, suite.name, text, reference, history, key=row.turns[0]))
    return prompts


def _reference_of(references: list[str | None] | str | None, turn: int) -> str | None:
    """The reference of a turn; a single text is that of the first."""
    listed = [references] if isinstance(references, str) else references or []
    return listed[turn] if turn < len(listed) else None


class MtBench(Suite[QuestionRow]):
    """`mt-bench`: each turn of each question."""

    name: str = "mt-bench"
    family: str = "mt-bench"
    protocol: Protocol = PROTOCOLS["mt-bench"]
    row_type: ClassVar[type[BaseModel]] = QuestionRow
    file: str = "FastChat's fastchat/llm_judge/data/mt_bench/question.jsonl"

    def prompts(self, row: QuestionRow, number: int) -> list[Prompt]:
        return prompts_of_turns(self, row)
