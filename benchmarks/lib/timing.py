"""Timing of whole steps, trees alternating, part by part and by the wall clock."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch

from entmtp.decoding.measure_cost import StepBench, interleaved
from entmtp.decoding.outputs import PARTS, StepRecord
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
"""Random steps before memory is counted: more than the device's cache of tree batches has entries."""


@dataclass(frozen=True)
class StepTime:
    """Median milliseconds of a step.

    Attributes:
        parts: by part, on the device's own clock.
        rest_ms: in no part: the host's own work.
        wall_ms: of the whole step.
    """

    parts: dict[str, float]
    rest_ms: float
    wall_ms: float


def ladder_of(topology: Topology) -> LadderPolicy:
    """A ladder all of whose rungs are this tree, so that the policy's own time is measured too."""
    rungs = (topology,) * (1 + len(_THRESHOLDS))
    ladder = Ladder(_THRESHOLDS, rungs, _WINDOW)
    return LadderPolicy(ladder, LadderSettings().hysteresis)


def timed_steps(bench: StepBench, policies: Mapping[K, Policy], repetitions: int) -> dict[K, StepTime]:
    """Time steps of all policies, alternating. The first steps warm up and are dropped."""
    return timed({key: partial(bench.step, policy) for key, policy in policies.items()}, repetitions)


def timed(steps: Mapping[K, Callable[[], StepRecord]], repetitions: int) -> dict[K, StepTime]:
    """Time steps, which may be of several benches, alternating. The first ones warm up and are dropped."""
    clocks = {key: Clock(step) for key, step in steps.items()}
    return {
        key: StepTime(parts, *clocks[key].medians(repetitions))
        for key, parts in interleaved(clocks, repetitions).items()
    }


class Clock:
    """A step function that also records each run's wall-clock time."""

    def __init__(self, step: Callable[[], StepRecord]) -> None:
        self._step = step
        self.walls: list[float] = []
        self._rests: list[float] = []

    def __call__(self) -> StepRecord:
        """Run a step."""
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
    """Captures and memory of steps with changing trees, after the warm-up.

    Attributes:
        graphs: whether parts of a step are captured at all.
        captures: parts captured in the counted steps.
        added_bytes: rise of the allocator's peak in them; 0 where there is no CUDA allocator.
    """

    steps: int
    graphs: bool
    captures: int
    added_bytes: int

    @property
    def text(self) -> str:
        """The result as a sentence; without CUDA there is no bar."""
        steady = self.captures == 0 and self.added_bytes == 0 and self.graphs
        verdict = ("PASS" if steady else "FAIL") if torch.cuda.is_available() else "no bar without a GPU"
        how = "with" if self.graphs else "without"
        return (
            f"{verdict}: {self.steps} steps with changing random trees, {how} CUDA graphs: {self.captures} captures"
            f" after warm-up (bar: 0), the allocator's peak grew by {self.added_bytes} bytes (bar: 0)."
        )


def churn(bench: StepBench, max_nodes: int, max_depth: int, steps: int, warm_up: int = WARM_UP, seed: int = 0) -> Churn:
    """Run steps with a new random tree for every request.

    Before they count, every padded shape runs twice, so that it is captured and replayed.
    """
    draw = random.Random(seed)
    for nodes, depth in 2 * list(_shapes(max_nodes, max_depth)):
        bench.step(StaticPolicy(random_tree(draw, nodes, depth), _WINDOW))
    policy = _TreePerRequest(_random_trees(draw, max_nodes, max_depth))
    for _ in range(warm_up):
        bench.step(policy)
    graphs = bench.state.graphs
    captured, peak = graphs.captures, _peak()
    for _ in range(steps):
        bench.step(policy)
    return Churn(steps, graphs.active, graphs.captures - captured, _peak() - peak)


class _TreePerRequest(RequestPolicy):
    """A policy that gives each request the next tree."""

    def __init__(self, trees: Iterator[Topology]) -> None:
        self.entropy_window = _WINDOW
        self._trees = trees

    def choose_one(self, signals: Signals, state: None, limit: int) -> Topology:
        return next(self._trees)


def _random_trees(draw: random.Random, max_nodes: int, max_depth: int) -> Iterator[Topology]:
    while True:
        depth = draw.randint(0, max_depth)
        yield random_tree(draw, draw.randint(depth, min(max_nodes, _most_nodes(depth))), depth)


def _shapes(max_nodes: int, max_depth: int) -> Iterator[tuple[int, int]]:
    """Nodes and depth of one tree for each padded width and depth that trees can have."""
    yield 0, 0
    width = 2
    while width // 2 <= max_nodes:
        for depth in range(1, max_depth + 1):
            nodes = min(width - 1, max_nodes, _most_nodes(depth))
            if nodes >= max(depth, width // 2):
                yield nodes, depth
        width *= 2


def _most_nodes(depth: int) -> int:
    """Number of nodes of the largest tree of this depth."""
    return sum(_MOST_RANKS**level for level in range(1, depth + 1))


def random_tree(draw: random.Random, nodes: int, depth: int) -> Topology:
    """A random tree of exactly ``nodes`` nodes, at least ``depth``, and of this depth."""
    if not nodes:
        return Topology.root_only()
    paths: set[Path] = {(0,) * level for level in range(1, depth + 1)}
    inner = [(), *((0,) * level for level in range(1, depth))]
    while len(paths) < nodes:
        path = (*draw.choice(inner), draw.randrange(_MOST_RANKS))
        if path not in paths:
            paths.add(path)
            inner += [path] if len(path) < depth else []
    return Topology.of(paths)


def _peak() -> int:
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
