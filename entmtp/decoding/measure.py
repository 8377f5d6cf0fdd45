"""Measures the step cost of a model with its heads on this machine, in seconds rather than minutes."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from filelock import FileLock

from entmtp.decoding.request import RunningRequest, StepRecord
from entmtp.decoding.state import DecodingState
from entmtp.decoding.step import decode_step
from entmtp.heads.base import DraftHeads
from entmtp.models.backbone import Backbone
from entmtp.models.cache import ROUNDED_ROWS
from entmtp.scheduling.cost import BatchedCost, StepCost, cost_file, hardware_name, read_cost, write_cost
from entmtp.scheduling.policies import Policy, StaticPolicy
from entmtp.scheduling.signals import SignalTracker
from entmtp.trees.published import published_order
from entmtp.trees.topology import Topology

K = TypeVar("K")

NODES = (0, 1, 2, 3, 4, 5, 6, 8, 10, 11, 12, 16, 24, 32, 48, 63)
CONTEXT = 160
"""Tokens before the measured step: about the middle of a short answer."""

PARTS = ("policy", "draft", "verify", "accept", "compact")
MOST_NODES_OF_MANY = 16
"""Larger trees are not measured for several requests: they pay where nodes are free, and are foretold well there."""

_REPETITIONS = 5
_WARM_UP = 2


class StepBench:
    """Real steps, always from the same state: ``batch`` requests behind ``context`` tokens each."""

    def __init__(self, backbone: Backbone, heads: DraftHeads, batch: int, context: int, max_nodes: int) -> None:
        self.batch, self.context = batch, context
        # Room for the tree even where its width is rounded up to the next power of two, and little more: with a long
        # context and a large batch the cache is the largest thing in memory.
        capacity = -(-(context + 2 * (1 + max_nodes)) // ROUNDED_ROWS) * ROUNDED_ROWS
        self.state = DecodingState(backbone, heads, batch, capacity)
        prompt = [1 + at % (backbone.vocab_size - 1) for at in range(context)]
        self._roots = [self.state.prefill(slot, prompt)[0] for slot in range(batch)]

    def step(self, policy: Policy) -> StepRecord:
        """Does one step and takes it back."""
        requests = [
            RunningRequest(slot, SignalTracker(policy.entropy_window), policy.start(), root, 1.0)
            for slot, root in enumerate(self._roots)
        ]
        decode_step(self.state, policy, requests)
        for slot in range(self.batch):
            self.state.cache.rewind(slot, self.context)
        return requests[0].steps[0]


def interleaved(work: Mapping[K, Callable[[], StepRecord]], repetitions: int) -> dict[K, dict[str, float]]:
    """Median milliseconds of each part of a step; all take turns, so that a drift of the machine touches all alike."""
    records: dict[K, list[StepRecord]] = {key: [] for key in work}
    for repetition in range(_WARM_UP + repetitions):
        for key, step in work.items():
            record = step()
            if repetition >= _WARM_UP:
                records[key].append(record)
    return {
        key: {part: statistics.median(getattr(step, f"{part}_ms") for step in steps) for part in PARTS}
        for key, steps in records.items()
    }


def machine_cost(
    backbone: Backbone, heads: DraftHeads, cache_folder: Path, say: Callable[[str], None], slots: int
) -> BatchedCost:
    """The cost of steps of up to ``slots`` requests, each as :func:`step_cost`."""
    doubled = itertools.takewhile(lambda batch: batch < slots, (2**power for power in itertools.count()))
    return BatchedCost(
        measured={batch: step_cost(backbone, heads, cache_folder, say, batch) for batch in [*doubled, slots]}
    )


def step_cost(
    backbone: Backbone, heads: DraftHeads, cache_folder: Path, say: Callable[[str], None], batch: int = 1
) -> StepCost:
    """The cached cost of this model and these heads on this hardware, measured now if there is none."""
    hardware = hardware_name(backbone.device, len(backbone.devices))
    kernels = f"{backbone.kernels_in_words}, {backbone.dtype}"
    path = cost_file(cache_folder, hardware, backbone.fingerprint, heads.fingerprint, kernels, batch)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        cost = read_cost(path)
        if cost is None:
            whose = "" if batch == 1 else f" for {batch} requests"
            say(f"measuring the cost of a step with {heads.kind} heads{whose} on this machine (once, a few seconds)")
            cost = measure_cost(backbone, heads, hardware, batch)
            write_cost(path, cost)
    return cost


def measure_cost(backbone: Backbone, heads: DraftHeads, hardware: str, batch: int = 1) -> StepCost:
    """Medians of interleaved repetitions of whole steps with trees of each size, and of each depth."""
    nodes = NODES if batch == 1 else tuple(size for size in NODES if size <= MOST_NODES_OF_MANY)
    wide_nodes = len(published_order()) if batch == 1 else MOST_NODES_OF_MANY
    depths = range(1, heads.num_heads + 1)
    bench = StepBench(backbone, heads, batch=batch, context=CONTEXT, max_nodes=wide_nodes)

    def one_step(tree: Topology) -> Callable[[], StepRecord]:
        return lambda: bench.step(StaticPolicy(tree, entropy_window=8))

    trees = grid_trees(heads.num_heads, nodes, wide_nodes)
    ms = interleaved({key: one_step(tree) for key, tree in trees.items()}, _REPETITIONS)
    return StepCost(
        nodes=list(nodes),
        verify_ms=[sum(ms["verify", size].values()) - ms["verify", size]["draft"] for size in nodes],
        narrow_draft_ms=[ms["narrow", depth]["draft"] for depth in depths],
        wide_draft_ms=[ms["wide", depth]["draft"] for depth in depths],
        wide_nodes=wide_nodes,
        hardware=hardware,
    )


def grid_trees(max_depth: int, nodes: Sequence[int], wide_nodes: int | None = None) -> dict[tuple[str, int], Topology]:
    """The trees whose steps make a :class:`StepCost`.

    Under ('verify', n) one of n nodes; under ('narrow', d) and ('wide', d) a chain and a tree of ``wide_nodes`` (as
    many as the published tree has, if None) of depth d.
    """
    widest = len(published_order()) if wide_nodes is None else wide_nodes
    depths = range(1, max_depth + 1)
    trees = {("verify", size): sized_tree(size, max_depth) for size in nodes}
    trees |= {("narrow", depth): Topology.of([(0,) * at for at in range(1, depth + 1)]) for depth in depths}
    return trees | {("wide", depth): _wide(depth, widest) for depth in depths}


def sized_tree(nodes: int, max_depth: int) -> Topology:
    """The first ``nodes`` of the published tree that so many heads reach, then a wider first level."""
    published = [path for path in published_order() if len(path) <= max_depth]
    wider = [(rank,) for rank in range(nodes)]
    paths = list(dict.fromkeys([*published, *wider]))[:nodes]
    return Topology.of(paths) if paths else Topology.root_only()


def _wide(depth: int, nodes: int) -> Topology:
    """A tree of ``nodes`` nodes and this depth: a chain, then as :func:`sized_tree`."""
    chain = [(0,) * at for at in range(1, depth + 1)]
    return Topology.of(list(dict.fromkeys([*chain, *sized_tree(nodes, depth).paths]))[:nodes])
