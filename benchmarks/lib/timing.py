"""Times whole steps of many trees in turn, part by part and by the wall clock."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch

from entmtp.decoding.measure_cost import PARTS, StepBench, interleaved
from entmtp.decoding.outputs import StepRecord
from entmtp.policies.base import Policy, RequestPolicy
from entmtp.policies.ladder import Ladder, LadderPolicy
from entmtp.policies.signals import Signals
from entmtp.policies.static import StaticPolicy
from entmtp.settings import CalibrationSettings, LadderSettings
from entmtp.trees.topology import Path, Topology

K = TypeVar("K")

_THRESHOLDS = (0.2, 0.5, 1.0)
_MOST_RANKS = 16
_WINDOW = CalibrationSettings().entropy_window

WARM_UP = 300
"""Random steps before memory counts: more than the batches of trees that the device keeps for when they come again."""


@dataclass(frozen=True)
class StepTime:
    """Median milliseconds of a step.

    Attributes:
        parts: of each part, on the device's own clock.
        rest_ms: of what no part accounts for, the host's own work.
        wall_ms: of all of it.
    """

    parts: dict[str, float]
    rest_ms: float
    wall_ms: float


def ladder_of(topology: Topology) -> LadderPolicy:
    """A ladder that does all its work and then always takes this tree, so that its own time is measured too."""
    rungs = (topology,) * (1 + len(_THRESHOLDS))
    ladder = Ladder(_THRESHOLDS, rungs, _WINDOW)
    return LadderPolicy(ladder, LadderSettings().hysteresis)


def timed_steps(bench: StepBench, policies: Mapping[K, Policy], repetitions: int) -> dict[K, StepTime]:
    """Steps of all policies, taking turns; the first ones warm up and are dropped."""
    clocks = {key: Clock(partial(bench.step, policy)) for key, policy in policies.items()}
    return {
        key: StepTime(parts, *clocks[key].medians(repetitions))
        for key, parts in interleaved(clocks, repetitions).items()
    }


class Clock:
    """A step that notes what the wall clock says of each of its runs."""

    def __init__(self, step: Callable[[], StepRecord]) -> None:
        self._step = step
        self.walls: list[float] = []
        self._rests: list[float] = []

    def __call__(self) -> StepRecord:
        """Runs it once."""
        began = time.perf_counter()
        record = self._step()
        self.walls.append((time.perf_counter() - began) * 1e3)
        self._rests.append(self.walls[-1] - sum(getattr(record, f"{part}_ms") for part in PARTS))
        return record

    def medians(self, runs: int) -> tuple[float, float]:
        """Milliseconds of the rest and of the whole, over the last ``runs``."""
        return max(0.0, statistics.median(self._rests[-runs:])), statistics.median(self.walls[-runs:])


@dataclass(frozen=True)
class Churn:
    """What changing trees made of the device's memory and graphs, after the warm-up.

    Attributes:
        graphs: whether parts of a step are captured at all.
        captures: parts captured in the counted steps.
        grown_bytes: how much the allocator's peak rose in them; 0 where there is no CUDA allocator.
    """

    steps: int
    graphs: bool
    captures: int
    grown_bytes: int

    @property
    def text(self) -> str:
        """One sentence; without CUDA there is nothing to pass or fail."""
        steady = self.captures == 0 and self.grown_bytes == 0 and self.graphs
        verdict = ("PASS" if steady else "FAIL") if torch.cuda.is_available() else "no bar without a GPU"
        how = "with" if self.graphs else "without"
        return (
            f"{verdict}: {self.steps} steps with changing random trees, {how} CUDA graphs: {self.captures} captures"
            f" after warm-up (bar: 0), the allocator's peak grew by {self.grown_bytes} bytes (bar: 0)."
        )


def churn(bench: StepBench, max_nodes: int, max_depth: int, steps: int, warm_up: int = WARM_UP, seed: int = 0) -> Churn:
    """Steps with a new random tree for every request; every padded shape has run twice before they count.

    So it is captured, and has been replayed.
    """
    draw = random.Random(seed)
    for nodes, depth in 2 * list(_shapes(max_nodes, max_depth)):
        bench.step(StaticPolicy(random_tree(draw, nodes, depth), _WINDOW))
    policy = _EachItsOwn(_random_trees(draw, max_nodes, max_depth))
    for _ in range(warm_up):
        bench.step(policy)
    graphs = bench.state.graphs
    captured, peak = graphs.captures, _peak()
    for _ in range(steps):
        bench.step(policy)
    return Churn(steps, graphs.active, graphs.captures - captured, _peak() - peak)


class _EachItsOwn(RequestPolicy):
    """The next tree for whoever asks."""

    def __init__(self, trees: Iterator[Topology]) -> None:
        self.entropy_window = _WINDOW
        self._trees = trees

    def choose_one(self, signals: Signals, state: None, limit: int) -> Topology:
        return next(self._trees)


def _random_trees(draw: random.Random, max_nodes: int, max_depth: int) -> Iterator[Topology]:
    while True:
        depth = draw.randint(0, max_depth)
        yield random_tree(draw, draw.randint(depth, min(max_nodes, _room(depth))), depth)


def _shapes(max_nodes: int, max_depth: int) -> Iterator[tuple[int, int]]:
    """Nodes and depth of one tree for each padded width and depth that trees can have."""
    yield 0, 0
    width = 2
    while width // 2 <= max_nodes:
        for depth in range(1, max_depth + 1):
            nodes = min(width - 1, max_nodes, _room(depth))
            if nodes >= max(depth, width // 2):
                yield nodes, depth
        width *= 2


def _room(depth: int) -> int:
    """Nodes of the largest tree of this depth."""
    return sum(_MOST_RANKS**level for level in range(1, depth + 1))


def random_tree(draw: random.Random, nodes: int, depth: int) -> Topology:
    """A tree of exactly so many nodes, at least ``depth``, and this depth."""
    if not nodes:
        return Topology.root_only()
    paths: set[Path] = {(0,) * at for at in range(1, depth + 1)}
    inner = [(), *((0,) * at for at in range(1, depth))]
    while len(paths) < nodes:
        path = (*draw.choice(inner), draw.randrange(_MOST_RANKS))
        if path not in paths:
            paths.add(path)
            inner += [path] if len(path) < depth else []
    return Topology.of(paths)


def _peak() -> int:
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
