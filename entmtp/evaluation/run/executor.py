"""The interface of an executor, which runs a benchmark's units: in this process, or on the workers of a cluster."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from entmtp.evaluation.run.units import Unit
    from entmtp.evaluation.run.work_queue import SettledUnit


@dataclass
class Usage:
    """Time of all workers together, each counted from when it has loaded its model.

    Attributes:
        busy_seconds: spent in units that were finished.
        loaded_seconds: busy or idle.
        workers: the most at once.
    """

    busy_seconds: float = 0.0
    loaded_seconds: float = 0.0
    workers: int = 0

    @property
    def share(self) -> float:
        """Fraction of their time that workers were busy."""
        return self.busy_seconds / self.loaded_seconds if self.loaded_seconds else 0.0

    def __str__(self) -> str:
        return (
            f"workers were busy {self.share:.1%} of their time ({self.workers} at once, {self.loaded_seconds:.0f} s"
            " together); the rest is this driver, storage, lost work and the wait for the last unit"
        )


class Executor(Protocol):
    """Workers that run units.

    Attributes:
        device: 'cpu' or 'cuda'.
        threads: CPU threads of one worker.
        workers: number of workers now.
        gpus_per_worker: GPUs that each worker reserves.
        description: the same for a reader.
        usage: of all calls of :meth:`run` so far.
    """

    device: str
    threads: int
    workers: int
    gpus_per_worker: float
    description: str
    usage: Usage

    def run(self, plan: Any, waiting: list[Unit]) -> Iterator[SettledUnit]:
        """Run the units; yield each with its rows as it is settled."""

    def worker_states(self) -> list[tuple[str, str]]:
        """Name and current work of each worker. Called from another thread."""
