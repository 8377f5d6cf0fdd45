"""LitBench: prompts for creative writing; no automatic score, the texts are stored for judges."""

from __future__ import annotations

from typing import ClassVar

from pydantic import BaseModel

from entmtp.suites.base import HubDataset, Prompt, Suite
from entmtp.suites.protocols import PROTOCOLS, Protocol


class LitBenchRow(BaseModel):
    """Columns on the hub that are used: the prompt and the story that readers preferred."""

    prompt: str
    chosen_story: str


class LitBench(Suite[LitBenchRow]):
    """`litbench`: writing prompts."""

    name: str = "litbench"
    family: str = "litbench"
    protocol: Protocol = PROTOCOLS["litbench"]
    hub: HubDataset | None = HubDataset("SAA-Lab/LitBench-Train", "train")
    row_type: ClassVar[type[BaseModel]] = LitBenchRow

    def prompts(self, row: LitBenchRow, number: int) -> list[Prompt]:
        """The writing prompt; an empty list if it is blank. The preferred story is its reference, for judges."""
        if not (prompt := row.prompt.strip()):
            return []
        text = self.protocol.template.format(prompt=prompt)
        return [Prompt(f"{self.name}/{number}", self.name, text, {"chosen_story": row.chosen_story})]
