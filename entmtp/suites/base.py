"""What a suite is: a named set of prompts, the schema it is read from and the score of an answer."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Literal, TypeVar

from pydantic import BaseModel

from entmtp.suites.protocols import Protocol

Source = Literal["hub", "file", "package", "sample"]
Row = TypeVar("Row", bound=BaseModel)
Message = tuple[str, str]
"""Role ('system', 'user' or 'assistant') and content."""


@dataclass(frozen=True)
class Prompt:
    """One user message and what is needed to score the answer to it.

    `text` goes through the model's chat template as it is; `reference` holds strings only, so that a prompt can be
    sent between processes and written to a file.

    Attributes:
        history: the messages before `text`. A user's message that no answer follows is answered by the model itself.
        key: what decides whether the prompt is scored and drawn, where `text` does not: the opening of a conversation,
            the question without its worked examples.
    """

    id: str
    suite: str
    text: str
    reference: Mapping[str, str]
    history: tuple[Message, ...] = ()
    key: str = ""

    @property
    def content(self) -> list[Any]:
        """What a model is asked, as JSON."""
        return [self.id, self.text, *([self.history] if self.history else [])]


@dataclass(frozen=True)
class SuiteData:
    """The prompts of a suite and where they came from; `sha256` covers every prompt's id, text, earlier
    messages and reference."""

    suite: str
    prompts: tuple[Prompt, ...]
    source: Source
    origin: str
    sha256: str


@dataclass(frozen=True)
class HubDataset:
    """Where `datasets.load_dataset` finds a suite on the hub."""

    path: str
    split: str
    config: str | None = None
    data_files: str | None = None

    def __str__(self) -> str:
        parts = [part for part in (self.config, self.data_files, self.split) if part]
        return f"{self.path} ({', '.join(parts)})"


class Suite(ABC, Generic[Row]):
    """A kind of prompts. A new one is a subclass in its own file, a line in the registry and a row in the table of
    protocols."""

    name: str
    family: str
    """The name under which `--data` gives its file; variants of a suite share it."""
    protocol: Protocol
    row_type: ClassVar[type[BaseModel]]
    """Columns that every row must have, in the public data set's schema; other columns are ignored."""
    hub: HubDataset | None = None
    """Where the prompts are, unless a file is given; without it a file must be."""
    file: str = ""
    """What file to give, where the project has no sample of its own."""

    @abstractmethod
    def prompts(self, row: Row, number: int) -> list[Prompt]:
        """Turn the row at place `number` (from 0) into prompts; none where it holds no usable one."""

    @property
    def needs(self) -> str:
        """What a row must have, in words."""
        fields = self.row_type.model_fields.items()
        return f"suite {self.name} needs the columns {', '.join(name for name, one in fields if one.is_required())}"

    def package_rows(self) -> tuple[str, Iterable[Mapping[str, Any]]] | None:
        """Rows that an installed Python package carries, with the package's name and version; None without one."""
        return None

    def benchmark_text(self, prompt: Prompt) -> str:
        """The part of the prompt that is the benchmark's own, without words that this project puts around it."""
        return prompt.key or prompt.text

    def score(self, prompt: Prompt, text: str) -> float | None:
        """Score the answer `text`, 0 to 1; None where the suite has no automatic score."""
        return None


def fingerprint(prompts: Sequence[Prompt]) -> str:
    """SHA-256, in hexadecimal, over ids, texts, earlier messages and references in their order."""
    content = [[*prompt.content, dict(prompt.reference)] for prompt in prompts]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
