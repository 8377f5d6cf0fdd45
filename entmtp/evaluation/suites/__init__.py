"""The suites: where their prompts come from and how an answer is scored. A new suite is one file and one line here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from entmtp.errors import EntMTPError
from entmtp.evaluation.suites.base import Prompt, Source, Suite, SuiteData
from entmtp.evaluation.suites.gsm8k import Gsm8k
from entmtp.evaluation.suites.humaneval import HumanEval
from entmtp.evaluation.suites.litbench import LitBench
from entmtp.evaluation.suites.load import load
from entmtp.evaluation.suites.sharegpt import ShareGpt
from entmtp.evaluation.suites.splits import draw, split

SUITES: dict[str, Suite[Any]] = {
    HumanEval.name: HumanEval(),
    Gsm8k.name: Gsm8k(),
    ShareGpt.name: ShareGpt(),
    LitBench.name: LitBench(),
}

__all__ = [
    "SUITES",
    "Prompt",
    "Source",
    "Suite",
    "SuiteData",
    "draw",
    "get_suite",
    "load_suite",
    "scored_prompts",
    "split",
]


def get_suite(name: str) -> Suite[Any]:
    """The suite of that name; EntMTPError with the known names where there is none."""
    if name not in SUITES:
        raise EntMTPError(f"unknown suite {name!r}; known suites are {', '.join(SUITES)}")
    return SUITES[name]


def load_suite(name: str, data_file: str | Path | None = None, limit: int | None = None, seed: int = 0) -> SuiteData:
    """Load a suite's prompts: from `data_file` (the hub's schema) if given, else from the first that has them of an
    installed package, the hub and the project's own sample.

    `limit` draws that many of them by a hash seeded with `seed`, all where there are fewer.

    Raises:
        EntMTPError: unknown suite, limit below 1, unusable file, or a row that does not fit the schema.
    """
    return load(get_suite(name), None if data_file is None else Path(data_file), limit, seed)


def scored_prompts(name: str, count: int, seed: int = 0) -> tuple[Prompt, ...]:
    """Up to `count` prompts of a suite that no bank was calibrated on.

    Raises:
        EntMTPError: as :func:`load_suite` and :func:`draw`.
    """
    return draw(split(load_suite(name).prompts)[1], count, seed)
