"""SPEED-Bench (arXiv 2604.09557): eleven kinds of tasks, and inputs of fixed lengths by the entropy of the answers.

NVIDIA's licence allows evaluation and forbids redistribution. Many of the hub's rows are placeholders for texts from
other sources. NVIDIA's ``prepare.py`` fetches these and writes the files that the suites read.
"""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import BaseModel, Field, model_validator

from entmtp.errors import EntMTPError
from entmtp.suites.base import HubDataset, Prompt, Suite
from entmtp.suites.mt_bench import QuestionRow, Text, prompts_of_turns
from entmtp.suites.protocols import PROTOCOLS, Protocol

CATEGORIES = (
    *("coding", "math", "humanities", "stem", "writing", "summarization"),
    *("roleplay", "rag", "multilingual", "reasoning", "qa"),
)
"""Categories of the qualitative split, with 80 questions each."""
ENTROPIES = {"low-entropy": "low_entropy", "mixed-entropy": "mixed", "high-entropy": "high_entropy"}
"""Categories of the throughput splits, with 512 inputs each, by suffix of the suite's name."""
LENGTHS = ("1k", "2k", "8k", "16k", "32k")
"""Input lengths of the throughput splits, in tokens."""
FAMILY = "speed-bench"
FAMILIES = (FAMILY, *(f"{FAMILY}-{length}" for length in LENGTHS))
_PLACEHOLDER = "FULL BENCHMARK DATA SHOULD BE FETCHED FROM THE SOURCE"


class UserMessage(BaseModel):
    """One turn in the schema of NeMo-Skills."""

    role: Literal["user"]
    content: Text


class SpeedBenchRow(QuestionRow):
    """A row with the hub's `turns`, or the `messages` that NeMo-Skills' ``prepare.py`` writes instead."""

    categories: ClassVar[tuple[str, ...]] = ()
    turns: list[Text] = Field(default_factory=list, min_length=1)
    messages: list[UserMessage] = Field(default_factory=list)

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        if self.category not in self.categories:
            raise ValueError(f"its 'category' is {self.category!r}, none of {', '.join(self.categories)}")
        self.turns = self.turns or [message.content for message in self.messages]
        if not self.turns:
            raise ValueError("it has neither 'turns' nor 'messages'")
        return self


class QualitativeRow(SpeedBenchRow):
    """A row of the qualitative split."""

    categories: ClassVar[tuple[str, ...]] = CATEGORIES


class ThroughputRow(SpeedBenchRow):
    """A row of a throughput split."""

    categories: ClassVar[tuple[str, ...]] = tuple(ENTROPIES.values())


class SpeedBench(Suite[QuestionRow]):
    """Base of the suites, each of one category of one split."""

    protocol: Protocol = PROTOCOLS[FAMILY]
    category: str

    def prompts(self, row: QuestionRow, number: int) -> list[Prompt]:
        """The row's turns; an empty list if it belongs to another category.

        Raises:
            EntMTPError: a turn is a placeholder.
        """
        if row.category != self.category:
            return []
        if any(turn.startswith(_PLACEHOLDER) for turn in row.turns):
            raise EntMTPError(
                f"suite {self.name}: question {row.question_id} is a placeholder for a text that lies elsewhere; run"
                f" NVIDIA's prepare.py, which fetches it, and give its file (for a benchmark by --data"
                f" {self.family}={self.file})"
            )
        return prompts_of_turns(self, row)


class SpeedBenchCategory(SpeedBench):
    """`speed-bench-CATEGORY`: conversations of one kind, for acceptance."""

    family: str = FAMILY
    hub: HubDataset | None = HubDataset("nvidia/SPEED-Bench", "test", config="qualitative")
    row_type: ClassVar[type[BaseModel]] = QualitativeRow
    file: str = "qualitative.jsonl"

    def __init__(self, category: str) -> None:
        self.name: str = f"{FAMILY}-{category}"
        self.category = category


class SpeedBenchThroughput(SpeedBench):
    """`speed-bench-LENGTH-ENTROPY`: inputs of one length whose answers are easy or hard to predict, for speed."""

    row_type: ClassVar[type[BaseModel]] = ThroughputRow

    def __init__(self, length: str, entropy: str) -> None:
        self.family: str = f"{FAMILY}-{length}"
        self.name: str = f"{self.family}-{entropy}"
        self.category = ENTROPIES[entropy]
        self.hub: HubDataset | None = HubDataset("nvidia/SPEED-Bench", "test", config=f"throughput_{length}")
        self.file: str = f"throughput_{length}.jsonl"
