"""Custom: the user's own prompts or conversations, a JSON object on each line; no automatic score."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import BaseModel, model_validator

from entmtp.suites.base import Prompt, Suite
from entmtp.suites.protocols import PROTOCOLS, Protocol


class CustomMessage(BaseModel):
    """One message of a conversation, in the schema of OpenAI's API."""

    role: Literal["system", "user", "assistant"]
    content: str


class CustomRow(BaseModel):
    """A prompt, or a conversation that ends with a user's message."""

    id: str | int | None = None
    prompt: str | None = None
    messages: list[CustomMessage] | None = None

    @model_validator(mode="after")
    def _has_prompt_or_messages(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("it has both or neither of 'prompt' and 'messages'")
        if self.messages is not None:
            roles = [message.role for message in self.messages]
            turns = roles[1:] if roles[:1] == ["system"] else roles
            if not turns or turns != [("user", "assistant")[i % 2] for i in range(len(turns))] or len(turns) % 2 == 0:
                raise ValueError("its 'messages' must take turns, user first and last, after at most one of the system")
        return self


class Custom(Suite[CustomRow]):
    """`custom`: the user's own prompts or conversations."""

    name: str = "custom"
    family: str = "custom"
    protocol: Protocol = PROTOCOLS["custom"]
    row_type: ClassVar[type[BaseModel]] = CustomRow
    file: str = 'JSON lines with a "prompt" or "messages", and an "id" if you like'

    @property
    def row_requirement(self) -> str:
        return f"suite {self.name} needs a 'prompt', or 'messages' with 'role' and 'content'"

    def prompts(self, row: CustomRow, number: int) -> list[Prompt]:
        """The row's prompt; an empty list if it is blank."""
        messages = [(message.role, message.content) for message in row.messages or []] or [("user", row.prompt or "")]
        text = messages[-1][1].strip()
        if not text:
            return []
        opening = next(content for role, content in messages if role == "user")
        id = f"{self.name}/{number if row.id is None else row.id}"
        text = self.protocol.template.format(prompt=text)
        return [Prompt(id, self.name, text, {}, tuple(messages[:-1]), key=opening)]
