"""Steps of a model of the given shape with random weights: by kernels, nodes, requests and context, and their floor.

All trees and all choices of kernels of a cell take turns, so that a drift of the clocks affects all alike. The costs
are a hardware profile too (:mod:`entmtp.policies.hardware_profile`), of as large a grid as was measured whole.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from benchmarks.gpu.assignment import DTYPE, Assignment, Sheet, print_table
from benchmarks.lib.fixed_depth import FixedDepthPolicy
from benchmarks.lib.record import Cell, Table
from benchmarks.lib.roofline import Machine, measure_machine
from benchmarks.lib.shapes import random_heads, random_model, shape_of
from benchmarks.lib.timing import StepTime, ladder_of, timed
from benchmarks.step import make_profile, profile_origin, profile_point, work_of
from entmtp.decoding.graphs import Graphs
from entmtp.decoding.measure_cost import StepBench, grid_trees
from entmtp.decoding.outputs import StepRecord
from entmtp.errors import EntMTPError
from entmtp.heads.base import DraftHeads
from entmtp.models.backbone import Backbone
from entmtp.models.build import build_backbone
from entmtp.models.kernels.choices import supported_kernels
from entmtp.policies.base import Policy
from entmtp.policies.hardware_profile import ProfilePoint

PROFILE = "hardware-profile.json"
NODES = (0, 1, 7, 15, 31, 63)
"""Budgets that fill widths of captured steps: what lies between is padded to the next."""
GRID = ((1, 512), (4, 512), (16, 512), (1, 4096), (16, 4096), (4, 4096))
"""Requests and context of each cell, the most telling first."""
DRY_NODES, DRY_GRID = (0, 1, 7), ((1, 64), (2, 64))
REPETITIONS = 11
BEFORE_TIMING = 2
"""Steps of each tree before it is timed: on a GPU the first is a plain call, and the second is captured."""
COLUMNS = ["kernels", "nodes", "policy", "draft", "verify", "accept", "compact", "rest", "step ms", "over plain"]
FLOORS = ["bytes floor", "operations floor", "step / floor"]
NOTES = [
    "Medians of the wall clock around whole steps; rest is what no part covers, the host's own work. policy is a"
    " ladder's. The floor is the larger of the bytes over the copy bandwidth and the products over the matrix rate.",
]
Key = tuple[str, int]


@dataclass
class Subject:
    """The model, its kernels and heads, and what is measured of them."""

    assignment: Assignment
    model: Any
    machine: Machine
    backbones: dict[str, Backbone]
    heads: dict[str, DraftHeads]
    points: dict[tuple[int, int], ProfilePoint] = field(default_factory=dict)

    @property
    def nodes(self) -> tuple[int, ...]:
        """The node budgets that are measured."""
        return self.assignment.pick(NODES, DRY_NODES)

    @property
    def levels(self) -> int:
        """Levels of the heads, the same for all kernels."""
        return next(iter(self.heads.values())).num_heads

    def policies(self) -> dict[Key, Policy]:
        """Policies that are timed: with trees of each size, and for the time of drafting by levels."""
        chosen: dict[Key, Policy] = {key: ladder_of(tree) for key, tree in grid_trees(self.levels, self.nodes).items()}
        return chosen | {("expanded", depth): FixedDepthPolicy(depth) for depth in range(1, self.levels + 1)}


def measure(assignment: Assignment) -> None:
    """Measure the cells of the grid while there is time."""
    notes = list(NOTES)
    subject = load(assignment, notes)
    notes.insert(0, f"This machine {subject.machine.text}.")
    print(notes[0])
    title = f"One step: {assignment.shape}, hydra heads, {DTYPE}, kernels: {', '.join(subject.backbones)}"
    sheet = Sheet(assignment, "steps", title, notes)
    grid = assignment.pick(GRID, DRY_GRID)
    sheet.fill(
        {f"batch {batch}, context {context}": partial(cell, subject, sheet, batch, context) for batch, context in grid}
    )


def load(assignment: Assignment, notes: list[str]) -> Subject:
    """The model with each choice of kernels that passes its self-test; the refusals of others become notes."""
    shape, device = shape_of(assignment.shape), assignment.device
    machine = measure_machine(device, DTYPE)
    model = random_model(shape, device, DTYPE)
    backbones: dict[str, Backbone] = {}
    for kernels in supported_kernels("auto", DTYPE, device):
        try:
            backbones[kernels] = build_backbone(model, kernels)
        except EntMTPError as refusal:
            notes.append(f"Not measured: {refusal}.")
    if not backbones:
        raise EntMTPError(f"kernels: none passes the self-test; {' '.join(notes)}")
    heads = {name: random_heads(shape, "hydra", backbone) for name, backbone in backbones.items()}
    return Subject(assignment, model, machine, backbones, heads)


def cell(subject: Subject, sheet: Sheet, batch: int, context: int) -> None:
    """Measure one batch size and context, and add its table, its notes and its point of the profile."""
    where = f"batch {batch}, context {context}"
    policies = subject.policies()
    widest = max(tree.nodes for tree in grid_trees(subject.levels, subject.nodes).values())
    benches = {
        name: StepBench(backbone, subject.heads[name], batch, context, widest)
        for name, backbone in subject.backbones.items()
    }
    steps: dict[tuple[str, Key], Callable[[], StepRecord]] = {
        (name, key): partial(benches[name].step, policy) for key, policy in policies.items() for name in benches
    }
    for _ in range(BEFORE_TIMING):
        for step in steps.values():
            step()
    captured = _captures(benches)
    times = timed(steps, subject.assignment.pick(REPETITIONS, 1))
    table = Table(title=f"ms of a step, {where}", columns=[*COLUMNS, *FLOORS], rows=[])
    for size in subject.nodes:
        for name, bench in benches.items():
            table.rows.append(_row(subject, bench, name, size, times))
    sheet.tables.append(table)
    sheet.notes.append(f"{where}: {_captures(benches) - captured} captures while it was timed{_peak()}.")
    first = next(iter(benches))
    own = {key: time for (name, key), time in times.items() if name == first}
    subject.points[batch, context] = profile_point(batch, context, subject.nodes, subject.levels, own)
    save_profile(subject, sheet, first)
    print_table(table)


def _row(
    subject: Subject, bench: StepBench, name: str, size: int, times: Mapping[tuple[str, Key], StepTime]
) -> list[Cell]:
    time, plain = times[name, ("verify", size)], times[name, ("verify", 0)]
    tree = grid_trees(subject.levels, subject.nodes)["verify", size]
    floors = work_of(bench, subject.model, subject.heads[name], tree).floors(subject.machine)
    parts = [f"{time.parts[part]:.2f}" for part in COLUMNS[2:7]]
    ms = [f"{time.rest_ms:.2f}", f"{time.wall_ms:.2f}", f"{time.wall_ms / plain.wall_ms:.2f}"]
    return [name, size, *parts, *ms, *(f"{floor:.2f}" for floor in floors), f"{time.wall_ms / max(floors):.2f}"]


def save_profile(subject: Subject, sheet: Sheet, kernels: str) -> None:
    """Write the hardware profile of the cells so far."""
    grid = complete_grid(subject.points)
    origin = profile_origin(
        sheet.record(), subject.backbones[kernels], subject.heads[kernels], subject.assignment.shape
    )
    points = [subject.points[pair] for pair in grid]
    padded = Graphs.on(subject.backbones[kernels].devices).active
    profile = make_profile(origin, subject.nodes, grid, points, padded)
    profile.save(sheet.assignment.output / PROFILE)


def complete_grid(measured: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The largest set of pairs that has every batch with every context of it, in order."""
    pairs = set(measured)
    contexts = sorted({context for _, context in pairs})
    batches = sorted({batch for batch, _ in pairs})
    grids = []
    for count in range(1, len(contexts) + 1):
        for some in itertools.combinations(contexts, count):
            whole = [batch for batch in batches if all((batch, context) in pairs for context in some)]
            grids.append(list(itertools.product(whole, some)))
    return max(grids, key=len)


def _captures(benches: Mapping[str, StepBench]) -> int:
    return sum(bench.state.graphs.captures for bench in benches.values())


def _peak() -> str:
    if not torch.cuda.is_available():
        return ""
    return f"; the allocator's peak was {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB"
