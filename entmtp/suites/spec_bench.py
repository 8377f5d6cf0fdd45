"""Spec-Bench (arXiv 2401.07851): six tasks in one file, each a suite of its own; no automatic score."""

from __future__ import annotations

from typing import ClassVar

from pydantic import BaseModel, field_validator

from entmtp.suites.base import Prompt, Suite
from entmtp.suites.mt_bench import QuestionRow, prompts_of_turns
from entmtp.suites.protocols import PROTOCOLS, Protocol

CONVERSATION = frozenset({"writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities"})
"""Categories of MT-bench, which are one task in Spec-Bench."""
TASKS: dict[str, frozenset[str]] = {
    "conversation": CONVERSATION,
    "translation": frozenset({"translation"}),
    "summarization": frozenset({"summarization"}),
    "qa": frozenset({"qa"}),
    "math-reasoning": frozenset({"math_reasoning"}),
    "rag": frozenset({"rag"}),
}
"""Categories of each task."""


class SpecBenchRow(QuestionRow):
    """A line of Spec-Bench's `question.jsonl`: MT-bench's schema with these tasks' categories."""

    @field_validator("category")
    @classmethod
    def _has_known_category(cls, category: str) -> str:
        known = sorted(frozenset().union(*TASKS.values()))
        if category not in known:
            raise ValueError(f"{category!r} is none of {', '.join(known)}")
        return category


class SpecBench(Suite[QuestionRow]):
    """`spec-bench-TASK`: the questions of one task."""

    family: str = "spec-bench"
    protocol: Protocol = PROTOCOLS["spec-bench"]
    row_type: ClassVar[type[BaseModel]] = SpecBenchRow
    file: str = "Spec-Bench's data/spec_bench/question.jsonl"

    def __init__(self, task: str) -> None:
        self.name: str = f"spec-bench-{task}"
        self._categories = TASKS[task]

    def prompts(self, row: QuestionRow, number: int) -> list[Prompt]:
        """The row's turns; an empty list if it belongs to another task."""
        return prompts_of_turns(self, row) if row.category in self._categories else []
