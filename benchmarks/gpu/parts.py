"""The parts of a run on a GPU, the most valuable first, each with its command and its limits of time."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.gpu.bundled import bundled_unavailable_reason

CLOSING_SECONDS = 8.0
"""The time before its limit at which a part stops by its own clock."""


@dataclass(frozen=True)
class Part:
    """One part.

    Attributes:
        name: that of its module here, whose ``measure`` it runs.
        least_seconds: less than this is not enough to load what it measures.
        most_seconds: its limit; parts after it get what it leaves.
        package: package without which it can't run.
        arguments: of ``python``, in place of the module's.
        without_bundled: further arguments where the bundled model is missing, which would be waited for.
    """

    name: str
    description: str
    least_seconds: float
    most_seconds: float
    package: str | None = None
    arguments: tuple[str, ...] = ()
    without_bundled: tuple[str, ...] = ()

    def unavailable_reason(self) -> str | None:
        """Reason why the part can't run here, or None."""
        if self.package is None or importlib.util.find_spec(self.package) is not None:
            return None
        return f"the package {self.package} is not installed"

    def command(self, options: Sequence[str], seconds: float) -> list[str]:
        """The command of its process, which stops by itself before ``seconds`` are over."""
        if self.arguments:
            more = self.without_bundled if bundled_unavailable_reason() else ()
            return [sys.executable, *self.arguments, *more]
        own = f"{max(1.0, seconds - CLOSING_SECONDS):.0f}"
        return [sys.executable, "-m", "benchmarks.gpu.worker", self.name, *options, "--seconds", own]


PARTS = (
    Part("ceilings", "rates that nothing on this card exceeds", 15, 45),
    Part("accuracy", "verification against float64", 25, 60),
    Part("steps", "a verification step by kernels, nodes, requests and context", 40, 180),
    Part("peer", "plain decoding against transformers' compiled generate", 60, 210),
    Part("throughput", "tokens per second of the engine by users and method", 40, 120),
    Part("identity", "greedy tokens that trees change in bfloat16", 30, 70),
    Part(
        "tests",
        "what only a GPU runs",
        30,
        240,
        "pytest",
        (
            *("-m", "pytest", "tests/unit/models/kernels/triton", "tests/unit/decoding/test_triton_steps.py"),
            *("tests/integration/test_on_a_gpu.py", "-q", "-p", "no:cacheprovider", "--tb=short"),
        ),
        ("-k", "not bundled"),
    ),
)
