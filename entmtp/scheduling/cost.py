"""What a step costs on this machine: measured medians over node budgets, interpolated, cached per hardware.

A step's time is verify(nodes) + draft(depth, nodes): the first covers the forward pass, acceptance and compaction; the
second the heads, whose time grows with the levels they run (Hydra) and, less, with the nodes they fill.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

from entmtp.errors import EntMTPError
from entmtp.files import write_text
from entmtp.trees.topology import Topology


class PartedCost(Protocol):
    """Milliseconds of a step with a tree, and those of them that drafting takes."""

    def __call__(self, topology: Topology) -> float: ...

    def draft(self, topology: Topology) -> float:
        """Of filling the tree."""


class PolicyCost(PartedCost, Protocol):
    """What policies are made from: the cost of a step of one request, and of steps of several."""

    def of_batch(self, batch: int) -> PartedCost:
        """That of a step of ``batch`` requests; an EntMTPError where nothing is known of so many."""


class MachineCost(Protocol):
    """The cost of steps on a machine that was measured with some numbers of requests."""

    def of_batch(self, batch: int) -> StepCost:
        """That of a step of ``batch`` requests; an EntMTPError where nothing is known of so many."""


class StepCost(BaseModel):
    """Milliseconds per step of one request.

    Attributes:
        nodes, verify_ms: the grid of node budgets (without the root), starting at 0, and the medians there.
        narrow_draft_ms, wide_draft_ms: drafting medians at depths 1, 2, ... for a chain and for ``wide_nodes`` nodes.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    nodes: list[int] = Field(min_length=2)
    verify_ms: list[float]
    narrow_draft_ms: list[float] = Field(min_length=1)
    wide_draft_ms: list[float]
    wide_nodes: int
    hardware: str

    @model_validator(mode="after")
    def _complete(self) -> StepCost:
        if self.nodes[0] != 0 or sorted(set(self.nodes)) != self.nodes:
            raise ValueError("nodes must start at 0 and increase")
        if len(self.verify_ms) != len(self.nodes) or len(self.wide_draft_ms) != len(self.narrow_draft_ms):
            raise ValueError("every grid point needs its time")
        if not all(np.isfinite(ms) and ms > 0 for ms in self.verify_ms + self.narrow_draft_ms + self.wide_draft_ms):
            raise ValueError("times must be positive numbers")
        return self

    def of_batch(self, batch: int) -> StepCost:
        """This, where ``batch`` is 1.

        Raises:
            EntMTPError: for more, of which it knows nothing.
        """
        if batch != 1:
            raise EntMTPError(
                f"batch: the cost of a step is known for 1 request, not for {batch}; give a hardware profile that was"
                " measured with such batches"
            )
        return self

    def __call__(self, topology: Topology) -> float:
        """Predicted milliseconds of a step with this tree."""
        return self.but_draft(topology.nodes) + self.draft(topology)

    def but_draft(self, nodes: int) -> float:
        """Predicted milliseconds of a step with a tree of so many nodes, without drafting.

        Behind the grid's end the last slope goes on: a tree that was never measured must not look free.
        """
        beyond = max(0, nodes - self.nodes[-1])
        slope = (self.verify_ms[-1] - self.verify_ms[-2]) / (self.nodes[-1] - self.nodes[-2])
        return float(np.interp(nodes, self.nodes, self.verify_ms)) + beyond * max(0.0, slope)

    def draft(self, topology: Topology) -> float:
        """Predicted milliseconds of filling this tree."""
        depth = min(topology.max_depth, len(self.narrow_draft_ms))
        if depth == 0:
            return 0.0
        ends = [self.narrow_draft_ms[depth - 1], self.wide_draft_ms[depth - 1]]
        return float(np.interp(topology.nodes, [depth, max(self.wide_nodes, depth + 1)], ends))


class BatchedCost(BaseModel):
    """Milliseconds per step by the number of requests; linear between those that were measured.

    Attributes:
        measured: by number of requests, 1 among them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    measured: dict[int, StepCost]

    @model_validator(mode="after")
    def _complete(self) -> BatchedCost:
        if 1 not in self.measured or min(self.measured) < 1:
            raise ValueError("steps of one request must be among those measured")
        return self

    def of_batch(self, batch: int) -> StepCost:
        """That of a step of ``batch`` requests.

        Raises:
            EntMTPError: for more than were measured, of which it knows nothing.
        """
        if batch in self.measured:
            return self.measured[batch]
        if batch > max(self.measured):
            raise EntMTPError(
                f"batch: the cost of a step is known for up to {max(self.measured)} requests, not for {batch};"
                " measure with more slots"
            )
        low, high = (
            max(each for each in self.measured if each < batch),
            min(each for each in self.measured if each > batch),
        )
        return _between(self.measured[low], self.measured[high], (batch - low) / (high - low))


def _between(low: StepCost, high: StepCost, part: float) -> StepCost:
    nodes = sorted({*low.nodes, *high.nodes})

    def blended(one: Sequence[float], other: Sequence[float]) -> list[float]:
        return ((1 - part) * np.array(one) + part * np.array(other)).tolist()

    return StepCost(
        nodes=nodes,
        verify_ms=blended([low.but_draft(each) for each in nodes], [high.but_draft(each) for each in nodes]),
        narrow_draft_ms=blended(low.narrow_draft_ms, high.narrow_draft_ms),
        wide_draft_ms=blended(low.wide_draft_ms, high.wide_draft_ms),
        wide_nodes=max(low.wide_nodes, high.wide_nodes),
        hardware=low.hardware,
    )


def hardware_name(device: torch.device, devices: int = 1) -> str:
    """A readable fingerprint of what a measured time depends on; ``devices`` of the kind hold one model."""
    if device.type == "cuda":
        several = f"{devices} x " if devices > 1 else ""
        return f"{several}{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    return f"{_cpu_name()}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def cost_file(
    folder: Path, hardware: str, model_fingerprint: str, heads_fingerprint: str, kernels: str, batch: int = 1
) -> Path:
    """Where the cost of this model with these heads and ``kernels`` on this hardware is cached."""
    parts = (hardware, model_fingerprint, heads_fingerprint, kernels, str(batch))
    key = hashlib.sha256("|".join(parts).encode()).hexdigest()[:16]
    return folder / "costs" / f"{key}.json"


def read_cost(path: Path) -> StepCost | None:
    """The cached cost, or None if it is absent.

    Raises:
        EntMTPError: if the file is not a cost table or has holes.
    """
    if not path.is_file():
        return None
    try:
        return StepCost.model_validate_json(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise EntMTPError(f"cost: {path} is not a complete step-cost table; remove it to measure again") from error


def write_cost(path: Path, cost: StepCost) -> None:
    """Caches a measured cost; a reader never sees half a file."""
    write_text(path, cost.model_dump_json(indent=1))
