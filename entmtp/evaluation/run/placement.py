"""How many benchmark workers each node of a cluster holds, and on which kind of GPU a run takes place.

Times of different hardware are never compared, so all workers of a run are on one kind of GPU.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from entmtp.errors import EntMTPError
from entmtp.models.multi_gpu import BALANCED

DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True)
class ResourceRequest:
    """What a user asks of the devices; None where anything will do.

    Attributes:
        device: what the model runs on: 'cpu', 'cuda', or 'auto' for a GPU where there is one.
        gpus_per_worker: that each worker holds, whatever its device: a fraction of one, one, or several, over which
            its model is spread.
        accelerator: the kind of GPU, as the cluster names it ('H100').
        workers: at most so many; a cluster that scales by itself is asked for GPUs for them.
        cpus_per_worker: CPUs, and threads, of each worker without a GPU: fewer than a node has where a service holds
            the rest.
    """

    device: str = "auto"
    gpus_per_worker: float | None = None
    accelerator: str | None = None
    workers: int | None = None
    cpus_per_worker: int | None = None

    def check(self) -> None:
        """Raises EntMTPError for what no cluster can give."""
        if self.device not in DEVICES:
            raise EntMTPError(f"device: '{self.device}' is unknown; choose one of {', '.join(DEVICES)}")
        if self.workers is not None and self.workers < 1:
            raise EntMTPError(f"workers: {self.workers} is not accepted; give at least 1")
        if self.cpus_per_worker is not None and self.cpus_per_worker < 1:
            raise EntMTPError(f"cpus_per_worker: {self.cpus_per_worker} is not accepted; give at least 1")
        share = self.gpus_per_worker
        if share is None:
            return
        if not (math.isfinite(share) and share > 0):
            raise EntMTPError(f"gpus_per_worker: {share:g} is not accepted; give 1, or a fraction such as 0.5")
        if share > 1 and share != int(share):
            raise EntMTPError(f"gpus_per_worker: {share:g} is not accepted; give a whole number, or less than 1")

    @property
    def share(self) -> dict[str, float]:
        """What a worker takes of a node with GPUs, by Ray's names, where nothing of the nodes is known yet."""
        kind = {} if self.accelerator is None else {f"accelerator_type:{self.accelerator}": 0.001}
        return {"GPU": self.gpus_per_worker or 1.0, **kind}


@dataclass(frozen=True)
class Node:
    """A machine of the cluster. ``kind`` is the cluster's name for its GPUs, '' where it has none."""

    id: str
    name: str
    cpus: float
    gpus: float
    kind: str


@dataclass(frozen=True)
class Placement:
    """What each worker of a run takes.

    Attributes:
        device: 'cpu', 'cuda', or 'balanced' for a model over several GPUs.
        gpus: that it holds; 0: it holds none, and is the node's only worker.
        threads: CPU threads.
        kind: of the GPUs; '' where the cluster doesn't tell, or there are none.
    """

    device: str
    gpus: float
    threads: int
    kind: str

    def workers_on(self, node: Node) -> int:
        """How many workers a node holds."""
        if not self.gpus:
            return int(node.cpus >= self.threads)
        return _workers(node, self.gpus) if node.kind == self.kind else 0


def choose_placement(nodes: Sequence[Node], requested: ResourceRequest) -> Placement:
    """Places workers on the nodes: one per GPU, or one per node where there are none, unless asked otherwise.

    Raises:
        EntMTPError: the nodes can't give what is asked for.
    """
    requested.check()
    with_gpus = any(node.gpus >= 1 for node in nodes)
    gpus = requested.gpus_per_worker or (1.0 if with_gpus and requested.device != "cpu" else 0.0)
    device = requested.device if requested.device != "auto" else "cuda" if gpus else "cpu"
    if gpus:
        if requested.cpus_per_worker is not None:
            raise EntMTPError(
                f"cpus_per_worker: {requested.cpus_per_worker} is for workers without a GPU; leave it out"
                " (jobs/benchmark.py takes it with --device cpu)"
            )
        device = BALANCED if gpus > 1 and device == "cuda" else device
        kind = _chosen_kind(nodes, gpus, requested.accelerator)
        chosen = [node for node in nodes if node.kind == kind and _workers(node, gpus)]
        threads = min(int(node.cpus) // _workers(node, gpus) for node in chosen)
        return Placement(device, gpus, max(1, threads), kind)
    if device == "cuda" or requested.accelerator is not None:
        asked = "device: 'cuda'" if device == "cuda" else f"accelerator: '{requested.accelerator}'"
        raise EntMTPError(f"{asked} needs a GPU and no node has one; add a node with a GPU, or give --device cpu")
    cpus = [int(node.cpus) for node in nodes if node.cpus >= 1]
    if not cpus:
        raise EntMTPError("cluster: no node offers a CPU; start one with 'ray start --num-cpus N'")
    if (wanted := requested.cpus_per_worker) is not None:
        if wanted > max(cpus):
            raise EntMTPError(f"cpus_per_worker: {wanted} is more than any node has; give at most {max(cpus)}")
        return Placement(device, 0.0, wanted, "")
    # All workers have as many threads, or their times would not compare: so many that most CPUs have work.
    threads = max(cpus, key=lambda count: (count * sum(own >= count for own in cpus), count))
    return Placement(device, 0.0, threads, "")


def _workers(node: Node, gpus: float) -> int:
    if gpus > 1:
        return int(node.gpus) // int(gpus)
    # A share is of one GPU: 1 / 0.3 leaves a rest that no fourth worker can have. The small term is for 1 / 0.1.
    return int(node.gpus) * int(1 / gpus + 1e-6)


def _chosen_kind(nodes: Sequence[Node], gpus: float, asked: str | None) -> str:
    """The kind of GPU that was asked for, or the one that most workers can have."""
    workers: Counter[str] = Counter()
    for node in nodes:
        if _workers(node, gpus):
            workers[node.kind] += _workers(node, gpus)
    if not workers:
        raise EntMTPError(f"gpus_per_worker: {gpus:g} is more than any node has; leave it out to run on CPUs")
    if asked is None:
        return min(workers, key=lambda kind: (-workers[kind], kind))
    if asked not in workers:
        known = ", ".join(sorted(kind or "unnamed" for kind in workers))
        raise EntMTPError(f"accelerator: '{asked}' is on no node; the cluster's GPUs are {known}")
    return asked
