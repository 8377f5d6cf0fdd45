"""LitBench: prompts for creative writing; no automatic score."""

from __future__ import annotations

from typing import ClassVar

from pydantic import BaseModel

from entmtp.evaluation.suites.base import HubDataset, Prompt, Suite


class LitBenchRow(BaseModel):
    """The hub's columns that are used: the prompt and the story that readers preferred."""

    prompt: str
    chosen_story: str


class LitBench(Suite[LitBenchRow]):
    name: ClassVar[str] = "litbench"
    hub: ClassVar[HubDataset] = HubDataset("SAA-Lab/LitBench-Train", "train")
    row_type: ClassVar[type[BaseModel]] = LitBenchRow

    def prompt(self, row: LitBenchRow, number: int) -> Prompt | None:
        """The writing prompt; None where it is blank. The preferred story is kept for calibration texts."""
        text = row.prompt.strip()
        if not text:
            return None
        return Prompt(f"{self.name}/{number}", self.name, text, {"chosen_story": row.chosen_story})
