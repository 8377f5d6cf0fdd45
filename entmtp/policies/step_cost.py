"""Step cost: measured medians over node budgets, contexts and batch sizes, interpolated.

A step's time is verify(nodes) + draft(depth, nodes): the first covers the forward pass, acceptance and compaction; the
second the heads, whose time rises with the levels they run (Hydra) and, less, with the nodes they draft. Both rise
linearly with the context, the tokens that attention reads.

Where steps are captured as CUDA graphs, trees are padded to a few widths (:mod:`entmtp.trees.batch`). The cost is then
a staircase: that of the largest tree of the same width.
"""

from __future__ import annotations

import math
import platform
from bisect import bisect_right
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import numpy as np
import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from entmtp.errors import EntMTPError
from entmtp.trees.batch import filled_size
from entmtp.trees.topology import Topology

TYPICAL_CONTEXT = 160
"""Tokens in the cache at about the middle of a short answer. Trees that are fixed beforehand are priced at it."""


class TreeCost(Protocol):
    """Milliseconds of a step with a given tree; :meth:`draft` is the part that drafting takes."""

    def __call__(self, topology: Topology) -> float: ...

    def draft(self, topology: Topology) -> float:
        """Milliseconds of drafting the tree."""


def rounded_context(contexts: Sequence[int]) -> int:
    """Mean context of a step's requests, rounded to a power of the square root of 2.

    Attention's cost is additive in the lengths, so their mean decides. Prices are computed per rounded context, so that
    few are computed. Rounding changes the cost of one tree relative to another's by at most 3% on an H200.
    """
    mean = max(1.0, sum(contexts) / max(1, len(contexts)))
    return round(2 ** (round(2 * math.log2(mean)) / 2))


def widest(topologies: Sequence[Topology]) -> Topology:
    """Return the tree whose nodes and levels all trees of a step are padded to, which the step's cost is that of."""
    return max(topologies, key=lambda tree: (tree.nodes, tree.max_depth))


def interpolated(at: float, grid: Sequence[float], values: Sequence[float]) -> float:
    """Interpolate linearly between the values on an increasing grid; beyond its ends the value is that of the end.

    Equal to ``np.interp``, whose conversions take ten times as long for one number.
    """
    if at <= grid[0]:
        return values[0]
    if at >= grid[-1]:
        return values[-1]
    low = bisect_right(grid, at) - 1
    return (values[low + 1] - values[low]) / (grid[low + 1] - grid[low]) * (at - grid[low]) + values[low]


class StepCost(BaseModel):
    """Milliseconds per step at one batch size and one context.

    Attributes:
        nodes, verify_ms: the grid of node budgets (without the root), starting at 0, and the medians there.
        narrow_draft_ms, wide_draft_ms: drafting medians at depths 1, 2, ... for a chain and for ``wide_nodes`` nodes.
        padded: whether trees are padded to the widths of captured steps. Files written without the field are of steps
            that aren't.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    nodes: list[int] = Field(min_length=2)
    verify_ms: list[float]
    narrow_draft_ms: list[float] = Field(min_length=1)
    wide_draft_ms: list[float]
    wide_nodes: int
    hardware: str
    padded: bool = False

    @model_serializer(mode="wrap")
    def _fields(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out the field that costs without padding don't need, so that their files stay what they were."""
        fields: dict[str, Any] = serialize(self)
        if not self.padded:
            del fields["padded"]
        return fields

    @model_validator(mode="after")
    def _complete(self) -> StepCost:
        if self.nodes[0] != 0 or sorted(set(self.nodes)) != self.nodes:
            raise ValueError("nodes must start at 0 and increase")
        if len(self.verify_ms) != len(self.nodes) or len(self.wide_draft_ms) != len(self.narrow_draft_ms):
            raise ValueError("every grid point needs its time")
        if not all(np.isfinite(ms) and ms > 0 for ms in self.verify_ms + self.narrow_draft_ms + self.wide_draft_ms):
            raise ValueError("times must be positive numbers")
        return self

    def of_batch(self, batch: int, context: int) -> StepCost:
        """Return itself for any context: only one was measured.

        Raises:
            EntMTPError: for more than one request, which was not measured.
        """
        _check_single(batch)
        return self

    def __call__(self, topology: Topology) -> float:
        """Predicted milliseconds of a step with this tree."""
        return self.without_draft(topology.nodes) + self.draft(topology)

    def computed_nodes(self, nodes: int) -> int:
        """Nodes that a step with a tree of ``nodes`` nodes computes, padding included."""
        return filled_size(nodes) if self.padded else nodes

    def without_draft(self, nodes: int) -> float:
        """Predicted milliseconds of a step with a tree of ``nodes`` nodes, without drafting.

        Beyond the grid the last slope is extrapolated: a tree that was never measured must not look free.
        """
        nodes = self.computed_nodes(nodes)
        beyond = max(0, nodes - self.nodes[-1])
        slope = (self.verify_ms[-1] - self.verify_ms[-2]) / (self.nodes[-1] - self.nodes[-2])
        return interpolated(nodes, self.nodes, self.verify_ms) + beyond * max(0.0, slope)

    def draft(self, topology: Topology) -> float:
        """Predicted milliseconds of drafting this tree."""
        depth = min(topology.max_depth, len(self.narrow_draft_ms))
        if depth == 0:
            return 0.0
        ends = [self.narrow_draft_ms[depth - 1], self.wide_draft_ms[depth - 1]]
        nodes = self.computed_nodes(topology.nodes)
        return interpolated(nodes, [depth, max(self.wide_nodes, depth + 1)], ends)


class CostTable(BaseModel):
    """Milliseconds per step at one batch size, by context; one JSON file.

    Costs are linear between the measured contexts. Beyond the last one the last slope is extrapolated, as attention's
    cost is linear in the context. Below the first one the cost is that of the first.

    Attributes:
        contexts: tokens in each request's cache before the step, increasing.
        costs: the cost at each context.
        spread: 90% quantile of the relative differences between repetitions of one step, without slowness that all
            steps shared.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[2] = 2
    contexts: list[Annotated[int, Field(ge=1)]] = Field(min_length=1)
    costs: list[StepCost]
    spread: Annotated[FiniteFloat, Field(ge=0)] = 0.0

    @model_validator(mode="after")
    def _complete(self) -> CostTable:
        if sorted(set(self.contexts)) != self.contexts:
            raise ValueError("contexts must increase")
        if len(self.costs) != len(self.contexts):
            raise ValueError("every context needs its cost")
        if len({len(cost.narrow_draft_ms) for cost in self.costs}) > 1:
            raise ValueError("drafting must be measured to the same depth at every context")
        return self

    def at(self, context: int) -> StepCost:
        """Cost after ``context`` tokens."""
        if len(self.contexts) == 1 or context <= self.contexts[0]:
            return self.costs[0]
        high = min(bisect_right(self.contexts, context), len(self.contexts) - 1)
        begin, end = self.contexts[high - 1], self.contexts[high]
        return _between(self.costs[high - 1], self.costs[high], (context - begin) / (end - begin))

    @property
    def padded(self) -> bool:
        """Whether trees are padded (:class:`StepCost`)."""
        return self.costs[0].padded

    @cached_property
    def typical(self) -> StepCost:
        """Cost at :data:`TYPICAL_CONTEXT`."""
        return self.at(TYPICAL_CONTEXT)

    def __call__(self, topology: Topology) -> float:
        """Predicted milliseconds at :data:`TYPICAL_CONTEXT`."""
        return self.typical(topology)

    def draft(self, topology: Topology) -> float:
        """Predicted milliseconds of drafting this tree, at :data:`TYPICAL_CONTEXT`."""
        return self.typical.draft(topology)

    def of_batch(self, batch: int, context: int) -> StepCost:
        """Cost after ``context`` tokens.

        Raises:
            EntMTPError: for more than one request, which was not measured.
        """
        _check_single(batch)
        return self.at(context)


class BatchedCost(BaseModel):
    """Milliseconds per step by batch size, linear between the measured ones.

    Attributes:
        measured: cost tables by batch size, 1 included.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    measured: dict[int, CostTable]

    @model_validator(mode="after")
    def _complete(self) -> BatchedCost:
        if 1 not in self.measured or min(self.measured) < 1:
            raise ValueError("steps of one request must be among those measured")
        return self

    @property
    def padded(self) -> bool:
        """Whether trees are padded (:class:`StepCost`)."""
        return self.measured[1].padded

    def table(self, batch: int) -> CostTable:
        """Cost for ``batch`` requests.

        Raises:
            EntMTPError: beyond the measured batch sizes.
        """
        if batch in self.measured:
            return self.measured[batch]
        if batch > max(self.measured):
            raise EntMTPError(
                f"batch: the cost of a step is known for up to {max(self.measured)} requests, not for {batch};"
                " measure with more slots"
            )
        few, many = (
            max(each for each in self.measured if each < batch),
            min(each for each in self.measured if each > batch),
        )
        low, high = self.measured[few], self.measured[many]
        contexts = sorted({*low.contexts, *high.contexts})
        part = (batch - few) / (many - few)
        return CostTable(
            contexts=contexts,
            costs=[_between(low.at(context), high.at(context), part) for context in contexts],
            spread=max(low.spread, high.spread),
        )


def _check_single(batch: int) -> None:
    if batch != 1:
        raise EntMTPError(
            f"batch: the cost of a step is known for 1 request, not for {batch}; give a hardware profile that was"
            " measured with such batches"
        )


def _between(low: StepCost, high: StepCost, part: float) -> StepCost:
    """Interpolate linearly from ``low`` at part 0 to ``high`` at 1; beyond 1 no time is less than that of ``high``."""
    nodes = sorted({*low.nodes, *high.nodes})

    def blended(one: Sequence[float], other: Sequence[float]) -> list[float]:
        begin, end = np.array(one), np.array(other)
        rise = end - begin
        ms: np.ndarray = begin + part * rise if part <= 1 else end + (part - 1) * np.maximum(0.0, rise)
        return ms.tolist()

    return StepCost(
        nodes=nodes,
        verify_ms=blended([low.without_draft(each) for each in nodes], [high.without_draft(each) for each in nodes]),
        narrow_draft_ms=blended(low.narrow_draft_ms, high.narrow_draft_ms),
        wide_draft_ms=blended(low.wide_draft_ms, high.wide_draft_ms),
        wide_nodes=max(low.wide_nodes, high.wide_nodes),
        hardware=low.hardware,
        padded=low.padded,
    )


def hardware_name(device: torch.device, devices: int = 1) -> str:
    """Readable name of the hardware that a measured time depends on; ``devices`` of it share one model."""
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
