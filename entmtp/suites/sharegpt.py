"""ShareGPT: people's messages to a chat model, at the start of or within a conversation; no automatic score."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import BaseModel, Field

from entmtp.errors import EntMTPError
from entmtp.suites.base import HubDataset, Message, Prompt, Suite
from entmtp.suites.protocols import PROTOCOLS, Protocol

MAX_CHARACTERS = 2000
"""Limit on a message. Longer ones are mostly pasted documents; the rest fits a small model's context."""
MAX_CONVERSATION_CHARACTERS = 6000
"""Limit on all turns together: about 1,700 tokens, which leaves room for an answer in a context of 2,048."""
MAX_TURNS = 16
_HUMAN = frozenset({"human", "user"})
_MODEL = frozenset({"gpt", "chatgpt", "assistant", "bing", "bard"})


class Turn(BaseModel):
    """One message of a conversation."""

    speaker: Annotated[str, Field(alias="from")]
    value: str


class ShareGptRow(BaseModel):
    """Column on the hub that is used: a conversation, oldest turn first."""

    conversations: list[Turn]


class ShareGpt(Suite[ShareGptRow]):
    """`sharegpt` has people's first messages; `sharegpt-N-turns` their N-th ones, with the turns before as history."""

    family: str = "sharegpt"
    protocol: Protocol = PROTOCOLS["sharegpt"]
    hub: HubDataset | None = HubDataset(
        "anon8231489123/ShareGPT_Vicuna_unfiltered", "train", data_files="ShareGPT_V3_unfiltered_cleaned_split.json"
    )
    row_type: ClassVar[type[BaseModel]] = ShareGptRow

    def __init__(self, turns: int | None = None) -> None:
        if turns is not None and not 2 <= turns <= MAX_TURNS:
            raise EntMTPError(
                f"suite sharegpt-{turns}-turns: turns are 2 to {MAX_TURNS}; ask for sharegpt-2-turns to"
                f" sharegpt-{MAX_TURNS}-turns, or sharegpt for first messages"
            )
        self.name: str = "sharegpt" if turns is None else f"sharegpt-{turns}-turns"
        self.turns = turns or 1

    def prompts(self, row: ShareGptRow, number: int) -> list[Prompt]:
        """The human's message of the suite's turn.

        The list is empty if the conversation has no such turn, a human's message up to it is blank or longer than
        `MAX_CHARACTERS`, or all messages together are longer than `MAX_CONVERSATION_CHARACTERS`.
        """
        history = self._up_to_turn(row.conversations)
        if history is None:
            return []
        user_messages = [content for role, content in history if role == "user"]
        if any(not 0 < len(content) <= MAX_CHARACTERS for content in user_messages):
            return []
        if sum(len(content) for _, content in history) > MAX_CONVERSATION_CHARACTERS:
            return []
        text = self.protocol.template.format(value=user_messages[-1])
        return [Prompt(f"{self.name}/{number}", self.name, text, {}, tuple(history[:-1]), key=user_messages[0])]

    def _up_to_turn(self, conversation: list[Turn]) -> list[Message] | None:
        """Messages from the first human one to that of the suite's turn; None if human and model do not alternate."""
        opening = next((index for index, turn in enumerate(conversation) if turn.speaker in _HUMAN), len(conversation))
        turns = conversation[opening : opening + 2 * self.turns - 1]
        speakers = [(_HUMAN, _MODEL)[index % 2] for index in range(2 * self.turns - 1)]
        if len(turns) < len(speakers) or any(turn.speaker not in names for turn, names in zip(turns, speakers)):
            return None
        return [("assistant" if turn.speaker in _MODEL else "user", turn.value.strip()) for turn in turns]
