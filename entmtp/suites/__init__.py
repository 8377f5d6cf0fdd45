"""Suites of benchmark prompts: their sources and the scores of answers.

A new suite is one file, one line here and one row in the table of :mod:`entmtp.suites.protocols`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from entmtp.errors import EntMTPError
from entmtp.suites.base import Prompt, Source, Suite, SuiteData
from entmtp.suites.custom import Custom
from entmtp.suites.gsm8k import Gsm8k
from entmtp.suites.humaneval import HumanEval
from entmtp.suites.litbench import LitBench
from entmtp.suites.load import load
from entmtp.suites.math500 import Math500
from entmtp.suites.mbpp import Mbpp
from entmtp.suites.mt_bench import MtBench
from entmtp.suites.protocols import MIXED
from entmtp.suites.sharegpt import ShareGpt
from entmtp.suites.spec_bench import TASKS, SpecBench
from entmtp.suites.speed_bench import (
    CATEGORIES,
    ENTROPIES,
    LENGTHS,
    SpeedBenchCategory,
    SpeedBenchThroughput,
)
from entmtp.suites.splits import draw, split

_SUITES: tuple[Suite[Any], ...] = (
    HumanEval(),
    Gsm8k(),
    ShareGpt(),
    LitBench(),
    Math500(),
    Mbpp(),
    *(SpeedBenchCategory(category) for category in CATEGORIES),
    *(SpeedBenchThroughput(length, entropy) for length in LENGTHS for entropy in ENTROPIES),
    MtBench(),
    *(SpecBench(task) for task in TASKS),
    Custom(),
)
SUITES = {suite.name: suite for suite in _SUITES}
VARIANTS: dict[str, Callable[[int], Suite[Any]]] = {"gsm8k-N-shot": Gsm8k, "sharegpt-N-turns": ShareGpt}
"""Suites with a number in their name, by pattern."""
GROUPS: dict[str, tuple[str, ...]] = {
    "speed-bench": tuple(f"speed-bench-{category}" for category in CATEGORIES),
    **{
        f"speed-bench-{length}": tuple(f"speed-bench-{length}-{entropy}" for entropy in ENTROPIES) for length in LENGTHS
    },
    "spec-bench": tuple(f"spec-bench-{task}" for task in TASKS),
}
"""Groups: names that expand to several suites."""
PAPER_SUITES = (HumanEval.name, "gsm8k", "sharegpt", LitBench.name)
"""The paper's four, and the default. Each has prompts without a file, and a bundled tree bank."""
FAMILIES = tuple(dict.fromkeys(suite.family for suite in SUITES.values()))
"""Names of suite families, by which data files are given."""

__all__ = [
    "FAMILIES",
    "MIXED",
    "PAPER_SUITES",
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
    "suite_names",
]


def get_suite(name: str) -> Suite[Any]:
    """The suite of that name. Raises EntMTPError with the known names if there is none."""
    return SUITES[name] if name in SUITES else _variant(name)


@cache
def _variant(name: str) -> Suite[Any]:
    for pattern, make in VARIANTS.items():
        if found := re.fullmatch(pattern.replace("N", "([1-9][0-9]{0,2})"), name):
            return make(int(found[1]))
    grouped = {member: group for group, members in GROUPS.items() for member in members}
    known = ", ".join(dict.fromkeys(grouped.get(suite, suite) for suite in [*SUITES, *VARIANTS]))
    raise EntMTPError(f"unknown suite {name!r}; known suites are {known} (docs/suites.md)")


def suite_names(requested: Sequence[str]) -> list[str]:
    """Names of the requested suites, each once: groups are expanded, and none means the paper's four.

    Raises:
        EntMTPError: unknown suite.
    """
    names = [name for each in requested or PAPER_SUITES for name in GROUPS.get(each, (each,))]
    return list(dict.fromkeys(get_suite(name).name for name in names))


def load_suite(name: str, data_file: str | Path | None = None, limit: int | None = None, seed: int = 0) -> SuiteData:
    """Load a suite's prompts.

    The source is `data_file` (in the hub's schema) if given. Else it is the first that has the suite of: an installed
    package, the hub, the project's own sample.

    `limit` samples that many prompts by a hash seeded with `seed`, or all if there are fewer.

    Raises:
        EntMTPError: unknown suite, limit below 1, unusable file, or a row that does not fit the schema.
    """
    return load(get_suite(name), None if data_file is None else Path(data_file), limit, seed)


def scored_prompts(name: str, count: int, seed: int = 0, data_file: str | Path | None = None) -> tuple[Prompt, ...]:
    """Up to `count` prompts of a suite's scored half, on which no bank is calibrated.

    Raises:
        EntMTPError: as :func:`load_suite` and :func:`draw`.
    """
    return draw(split(load_suite(name, data_file).prompts)[1], count, seed)
