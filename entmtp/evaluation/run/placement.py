"""Placement of a run's workers on the nodes of a cluster: how many per node, and on which kind of GPU.

Times of different hardware are never compared, so all workers of a run are on one kind of GPU.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from entmtp.errors import EntMTPError
from entmtp.settings import BALANCED

DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True)
class ResourceRequest:
    """Resources that a user requests for a run; None leaves a choice open.

    Attributes:
        device: that the model runs on: 'cpu', 'cuda', or 'auto' for a GPU where there is one.
        gpus_per_worker: that each worker reserves, whatever its device: a fraction of one, one, or several, over
            which its model is distributed.
        accelerator: the kind of GPU, as the cluster names it ('H100').
        workers: the most workers; an autoscaling cluster is requested to add GPUs for them.
        cpus_per_worker: CPUs, and threads, of each worker without a GPU: fewer than a node has where a service uses
            the rest.
    """

    device: str = "auto"
    gpus_per_worker: float | None = None
    accelerator: str | None = None
    workers: int | None = None
    cpus_per_worker: int | None = None

    def check(self) -> None:
        """Raise EntMTPError for what no cluster can give."""
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
        """A GPU worker's resources by Ray's names, before any node is known."""
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
    """Resources of each worker of a run.

    Attributes:
        device: 'cpu', 'cuda', or 'balanced' for a model over several GPUs.
        gpus: that it reserves; with 0 it is the node's only worker.
        threads: CPU threads.
        kind: of the GPUs; '' where the cluster doesn't report it, or there are none.
    """

    device: str
    gpus: float
    threads: int
    kind: str

    def workers_on(self, node: Node) -> int:
        """Number of workers that fit on a node."""
        if not self.gpus:
            return int(node.cpus >= self.threads)
        return _workers(node, self.gpus) if node.kind == self.kind else 0


def choose_placement(nodes: Sequence[Node], requested: ResourceRequest) -> Placement:
    """Choose each worker's resources: one GPU per worker, or one node where there are none, unless requested otherwise.

    Raises:
        EntMTPError: the nodes can't give what is requested.
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
        option = "device: 'cuda'" if device == "cuda" else f"accelerator: '{requested.accelerator}'"
        raise EntMTPError(f"{option} needs a GPU and no node has one; add a node with a GPU, or give --device cpu")
    cpus = [int(node.cpus) for node in nodes if node.cpus >= 1]
    if not cpus:
        raise EntMTPError("cluster: no node offers a CPU; start one with 'ray start --num-cpus N'")
    if (wanted := requested.cpus_per_worker) is not None:
        if wanted > max(cpus):
            raise EntMTPError(f"cpus_per_worker: {wanted} is more than any node has; give at most {max(cpus)}")
        return Placement(device, 0.0, wanted, "")
    # All workers have the same number of threads, so that times compare: the number that gives most CPUs work.
    threads = max(cpus, key=lambda count: (count * sum(own >= count for own in cpus), count))
    return Placement(device, 0.0, threads, "")


def _workers(node: Node, gpus: float) -> int:
    """Number of workers with ``gpus`` each that fit on a node."""
    if gpus > 1:
        return int(node.gpus) // int(gpus)
    # A fraction lies on one GPU: 1 / 0.3 leaves a rest too small for a fourth worker. The small term is for 1 / 0.1.
    return int(node.gpus) * int(1 / gpus + 1e-6)


def _chosen_kind(nodes: Sequence[Node], gpus: float, requested: str | None) -> str:
    """The requested kind of GPU, or the one that fits most workers."""
    workers: Counter[str] = Counter()
    for node in nodes:
        if _workers(node, gpus):
            workers[node.kind] += _workers(node, gpus)
    if not workers:
        raise EntMTPError(f"gpus_per_worker: {gpus:g} is more than any node has; leave it out to run on CPUs")
    if requested is None:
        return min(workers, key=lambda kind: (-workers[kind], kind))
    if requested not in workers:
        known = ", ".join(sorted(kind or "unnamed" for kind in workers))
        raise EntMTPError(f"accelerator: '{requested}' is on no node; the cluster's GPUs are {known}")
    return requested
