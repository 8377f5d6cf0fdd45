"""How old measured numbers are: what has changed since in the code that they are about."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.origin import commits_since

SINCE = "Since then: "
"""Begins a line that depends on when a page is rendered; nothing else of a record's section does."""

LIBRARY = ("entmtp",)
_FOLDERS = ("peers", "study")
_SERVICE = ("entmtp", "deployments")
_MEASURED: dict[str, tuple[str, ...]] = {
    "fanout": ("entmtp/evaluation", "jobs"),
    **dict.fromkeys(("autoscaling", "endpoints", "faults", "overload", "serving"), _SERVICE),
}


def measured_code(benchmark: str) -> tuple[str, ...]:
    """Files and folders whose change may change the numbers of a benchmark, the benchmark itself first."""
    own = f"benchmarks/{benchmark}" if benchmark in _FOLDERS else f"benchmarks/{benchmark}.py"
    return (own, *_MEASURED.get(benchmark, LIBRARY))


def age(commit: str, paths: Sequence[str]) -> str:
    """The line about later commits than ``commit`` that changed one of ``paths``."""
    count = commits_since(commit, paths)
    if count is None:
        return f"{SINCE}unknown, as its commit is not in this history."
    number = f"{count} commit{'s' * (count != 1)}" if count else "no commit"
    return f"{SINCE}{number} to {', '.join(paths)}."
