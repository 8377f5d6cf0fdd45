"""ShareGPT: the opening messages of people's conversations with a chat model; no automatic score."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import BaseModel, Field

from entmtp.evaluation.suites.base import HubDataset, Prompt, Suite

MAX_CHARACTERS = 2000
"""Longer messages are mostly pasted documents; without them a prompt fits the window of a small model."""
HUMAN = frozenset({"human", "user"})


class Turn(BaseModel):
    """One message of a conversation."""

    speaker: Annotated[str, Field(alias="from")]
    value: str


class ShareGptRow(BaseModel):
    """The hub's column that is used: a conversation, oldest turn first."""

    conversations: list[Turn]


class ShareGpt(Suite[ShareGptRow]):
    name: ClassVar[str] = "sharegpt"
    hub: ClassVar[HubDataset] = HubDataset(
        "anon8231489123/ShareGPT_Vicuna_unfiltered", "train", data_files="ShareGPT_V3_unfiltered_cleaned_split.json"
    )
    row_type: ClassVar[type[BaseModel]] = ShareGptRow

    def prompt(self, row: ShareGptRow, number: int) -> Prompt | None:
        """The first human turn; None where there is none, it is blank, or it is longer than `MAX_CHARACTERS`."""
        text = next((turn.value.strip() for turn in row.conversations if turn.speaker in HUMAN), "")
        if not text or len(text) > MAX_CHARACTERS:
            return None
        return Prompt(f"{self.name}/{number}", self.name, text, {})
