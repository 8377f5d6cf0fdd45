"""What runs a benchmark's units: this process, or the workers of a cluster."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from entmtp.evaluation.run.units import Unit
    from entmtp.evaluation.run.work_queue import Settled


@dataclass
class Usage:
    """Seconds of all workers together, each counted from when it had loaded its model.

    Attributes:
        busy: within units that were finished.
        present: whether they worked or not.
        workers: the most that there were at once.
    """

    busy: float = 0.0
    present: float = 0.0
    workers: int = 0

    @property
    def share(self) -> float:
        """Of their time that workers were busy."""
        return self.busy / self.present if self.present else 0.0

    def __str__(self) -> str:
        return (
            f"workers were busy {self.share:.1%} of their time ({self.workers} at once, {self.present:.0f} s together);"
            " the rest is this driver, storage, lost work and the wait for the last unit"
        )


class Devices(Protocol):
    """Where units run.

    Attributes:
        device: 'cpu' or 'cuda'.
        threads: CPU threads of one worker.
        workers: how many there are now.
        gpus_per_worker: that each of them holds.
        in_words: the same for a reader.
        usage: of all that :meth:`run` has done so far.
    """

    device: str
    threads: int
    workers: int
    gpus_per_worker: float
    in_words: str
    usage: Usage

    def run(self, plan: Any, waiting: list[Unit]) -> Iterator[Settled]:
        """Yields each unit with its rows as it is settled."""

    def doing(self) -> list[tuple[str, str]]:
        """What each worker is and does at this moment; called from another thread."""
