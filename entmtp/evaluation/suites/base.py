"""What a suite is: a named set of prompts, the schema it is read from and the score of an answer."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Literal, TypeVar

from pydantic import BaseModel

Source = Literal["hub", "file", "package", "sample"]
Row = TypeVar("Row", bound=BaseModel)


@dataclass(frozen=True)
class Prompt:
    """One user message and what is needed to score the answer to it.

    `text` goes through the model's chat template as it is; `reference` holds strings only, so that a prompt can be
    sent between processes and written to a file.
    """

    id: str
    suite: str
    text: str
    reference: Mapping[str, str]


@dataclass(frozen=True)
class SuiteData:
    """The prompts of a suite and where they came from; `sha256` covers every prompt's id, text and reference."""

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
    """A kind of prompts. A new one is a subclass in its own file and a line in the registry."""

    name: ClassVar[str]
    hub: ClassVar[HubDataset]
    row_type: ClassVar[type[BaseModel]]
    """Columns that every row must have, in the hub's schema; other columns are ignored."""
    metric: ClassVar[str | None] = None
    """Name of the task's own score, or None where no automatic score exists."""

    @abstractmethod
    def prompt(self, row: Row, number: int) -> Prompt | None:
        """Turn the row at place `number` (from 0) into a prompt, or None where it holds no usable one."""

    def package_rows(self) -> tuple[str, Iterable[Mapping[str, Any]]] | None:
        """Rows that an installed Python package carries, with the package's name and version; None without one."""
        return None

    def benchmark_text(self, prompt: Prompt) -> str:
        """The part of the prompt that is the benchmark's own, without words that this project puts around it."""
        return prompt.text

    def score(self, prompt: Prompt, text: str) -> float | None:
        """Score the answer `text`, 0 to 1; None where the suite has no automatic score."""
        return None


def fingerprint(prompts: Sequence[Prompt]) -> str:
    """SHA-256, in hexadecimal, over ids, texts and references in their order."""
    content = [[prompt.id, prompt.text, dict(prompt.reference)] for prompt in prompts]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
