"""What runs a benchmark's units: this process, or the workers of a cluster."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from entmtp.evaluation.run.units import Unit
    from entmtp.evaluation.run.work_queue import SettledUnit


@dataclass
class Usage:
    """Seconds of all workers together, each counted from when it had loaded its model.

    Attributes:
        busy_seconds: within units that were finished.
        loaded_seconds: whether they worked or not.
        workers: the most that there were at once.
    """

    busy_seconds: float = 0.0
    loaded_seconds: float = 0.0
    workers: int = 0

    @property
    def share(self) -> float:
        """Of their time that workers were busy."""
        return self.busy_seconds / self.loaded_seconds if self.loaded_seconds else 0.0

    def __str__(self) -> str:
        return (
            f"workers were busy {self.share:.1%} of their time ({self.workers} at once, {self.loaded_seconds:.0f} s"
            " together); the rest is this driver, storage, lost work and the wait for the last unit"
        )


class Executor(Protocol):
    """Where units run.

    Attributes:
        device: 'cpu' or 'cuda'.
        threads: CPU threads of one worker.
        workers: how many there are now.
        gpus_per_worker: that each of them holds.
        description: the same for a reader.
        usage: of all that :meth:`run` has done so far.
    """

    device: str
    threads: int
    workers: int
    gpus_per_worker: float
    description: str
    usage: Usage

    def run(self, plan: Any, waiting: list[Unit]) -> Iterator[SettledUnit]:
        """Yields each unit with its rows as it is settled."""

    def worker_states(self) -> list[tuple[str, str]]:
        """What each worker is and does at this moment; called from another thread."""
