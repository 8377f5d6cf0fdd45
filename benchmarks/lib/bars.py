"""The bars (limits of time) that a step must meet, as sentences with numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from benchmarks.lib.timing import StepTime

CPU_OVER_PLAIN = {3: 1.35, 15: 2.2}
"""On a CPU: the most that a step may take, in one-token steps, by nodes of its tree without the root."""

CUDA_OVER_FLOOR = {0: 1.10, 32: 1.25}
"""On a GPU: the most that a step may take, in its bandwidth floors, by nodes of its tree without the root."""

BOOKKEEPING = ("policy", "accept", "compact")
MOST_BOOKKEEPING = 0.05
MOST_DRAFTING = 0.15
DRAFTING_NODES = 15


def cpu_bars(times: Mapping[int, StepTime]) -> Iterator[str]:
    """Conclusions about the sizes in ``times`` (by nodes without the root) that have a bar."""
    for nodes, bar in CPU_OVER_PLAIN.items():
        if nodes in times and 0 in times:
            over = times[nodes].wall_ms / times[0].wall_ms
            yield _verdict(f"the {nodes + 1}-token step takes", over, bar, "x", "the one-token step")
    for nodes, time in times.items():
        share = sum(time.parts[part] for part in BOOKKEEPING) / time.wall_ms
        what = f"{', '.join(BOOKKEEPING[:-1])} and {BOOKKEEPING[-1]} take"
        yield _verdict(what, 100 * share, 100 * MOST_BOOKKEEPING, "%", f"the {nodes + 1}-token step")
    if DRAFTING_NODES in times:
        time = times[DRAFTING_NODES]
        share = time.parts["draft"] / time.wall_ms
        # 16 nodes with the root, as in the bar on the step itself.
        yield _verdict("the heads take", 100 * share, 100 * MOST_DRAFTING, "%", f"the {DRAFTING_NODES + 1}-token step")


def cuda_bars(times: Mapping[int, StepTime], bytes_floors: Mapping[int, float]) -> Iterator[str]:
    """Conclusions as :func:`cpu_bars`, against the bandwidth floors in milliseconds."""
    for nodes, bar in CUDA_OVER_FLOOR.items():
        if nodes in times:
            over = times[nodes].wall_ms / bytes_floors[nodes]
            yield _verdict(f"the step with {nodes} nodes takes", over, bar, "x", "its bandwidth floor")


def _verdict(what: str, value: float, bar: float, unit: str, of: str) -> str:
    digits = 2 if unit == "x" else 1
    word = "PASS" if value <= bar else "FAIL"
    return f"{word}: {what} {value:.{digits}f}{unit} of {of} (bar: {bar:.{digits}f}{unit})."
