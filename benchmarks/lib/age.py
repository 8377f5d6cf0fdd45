"""Age of measured numbers: the commits since then to the code that they measure."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.origin import commits_since

SINCE = "Since then: "
"""First words of the one line of a record's section that depends on when a page is rendered."""

LIBRARY = ("entmtp",)
_FOLDERS = ("gpu", "peers", "study")
_SERVICE = ("entmtp", "deployments")
_MEASURED: dict[str, tuple[str, ...]] = {
    "fanout": ("entmtp/evaluation", "jobs"),
    **dict.fromkeys(("autoscaling", "endpoints", "faults", "overload", "serving"), _SERVICE),
}


def measured_code(benchmark: str) -> tuple[str, ...]:
    """Files and folders on which the numbers of a benchmark depend, the benchmark itself first."""
    own = f"benchmarks/{benchmark}" if benchmark in _FOLDERS else f"benchmarks/{benchmark}.py"
    return (own, *_MEASURED.get(benchmark, LIBRARY))


def age(commit: str, paths: Sequence[str]) -> str:
    """The line about later commits than ``commit`` that changed one of ``paths``."""
    count = commits_since(commit, paths)
    if count is None:
        return f"{SINCE}unknown, as its commit is not in this history."
    number = f"{count} commit{'s' * (count != 1)}" if count else "no commit"
    return f"{SINCE}{number} to {', '.join(paths)}."
