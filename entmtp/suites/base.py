"""Base of all suites: a named set of prompts, the schema of their rows and the score of an answer."""

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
    """A user message and the reference that its answer is scored against.

    `text` goes into the model's chat template unchanged. `reference` has strings only, so that a prompt can be sent
    between processes and written to a file.

    Attributes:
        history: the messages before `text`. If a user's message has no answer, the model generates one.
        key: text that decides the split and the sampling of the prompt, if that is not `text`: the first message of a
            conversation, or the question without worked examples.
    """

    id: str
    suite: str
    text: str
    reference: Mapping[str, str]
    history: tuple[Message, ...] = ()
    key: str = ""

    @property
    def content(self) -> list[Any]:
        """Id, text and history as a JSON array, for hashing."""
        return [self.id, self.text, *([self.history] if self.history else [])]


@dataclass(frozen=True)
class SuiteData:
    """Prompts of a suite and their source; `sha256` covers every prompt's id, text, history and reference."""

    suite: str
    prompts: tuple[Prompt, ...]
    source: Source
    origin: str
    sha256: str


@dataclass(frozen=True)
class HubDataset:
    """Arguments of `datasets.load_dataset` for a suite on the hub."""

    path: str
    split: str
    config: str | None = None
    data_files: str | None = None

    def __str__(self) -> str:
        parts = [part for part in (self.config, self.data_files, self.split) if part]
        return f"{self.path} ({', '.join(parts)})"


class Suite(ABC, Generic[Row]):
    """Base of a suite.

    A new suite is a subclass in its own file, a line in the registry and a row in the table of protocols.
    """

    name: str
    family: str
    """Name by which `--data` gives the suite's file; variants of a suite share it."""
    protocol: Protocol
    row_type: ClassVar[type[BaseModel]]
    """Schema of a row, as in the public data set; other columns are ignored."""
    hub: HubDataset | None = None
    """Source of the prompts unless a file is given; if None, a file is required."""
    file: str = ""
    """Description of the file to give, for suites without a bundled sample."""

    @abstractmethod
    def prompts(self, row: Row, number: int) -> list[Prompt]:
        """Turn the row with index `number` (from 0) into prompts; an empty list if none is usable."""

    @property
    def row_requirement(self) -> str:
        """The columns that a row must have, as a phrase for messages."""
        fields = self.row_type.model_fields.items()
        return (
            f"suite {self.name} needs the columns {', '.join(name for name, column in fields if column.is_required())}"
        )

    def package_rows(self) -> tuple[str, Iterable[Mapping[str, Any]]] | None:
        """Name and version of an installed Python package with the suite's rows, and the rows; None without one."""
        return None

    def benchmark_text(self, prompt: Prompt) -> str:
        """The benchmark's own part of the prompt, without the words of this project's template."""
        return prompt.key or prompt.text

    def score(self, prompt: Prompt, text: str) -> float | None:
        """Score the answer `text`, from 0 to 1; None if the suite has no automatic score."""
        return None


def fingerprint(prompts: Sequence[Prompt]) -> str:
    """Hexadecimal SHA-256 of the prompts' ids, texts, histories and references, in order."""
    content = [[*prompt.content, dict(prompt.reference)] for prompt in prompts]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
