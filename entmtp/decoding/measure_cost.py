"""Measurement of the step cost of a model with its heads on this machine, in under a minute."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from filelock import FileLock

from entmtp.decoding.graphs import Graphs
from entmtp.decoding.outputs import PARTS, StepRecord
from entmtp.decoding.sequence import bare_sequence
from entmtp.decoding.state import DecodingState
from entmtp.decoding.step import decode_step
from entmtp.heads.base import DraftHeads
from entmtp.models.backbone import Backbone
from entmtp.models.cache import ROUNDED_ROWS
from entmtp.policies.base import Policy
from entmtp.policies.cost_cache import CostCorrectionFile, correction_path, cost_path, read_cost, write_cost
from entmtp.policies.static import StaticPolicy
from entmtp.policies.step_cost import BatchedCost, CostTable, StepCost, hardware_name
from entmtp.trees.batch import FILLED_SIZES, ROUNDED_WIDTHS, rounded_width
from entmtp.trees.published import published_order
from entmtp.trees.topology import Topology

K = TypeVar("K")

NODES = (0, 1, 2, 3, 4, 5, 6, 8, 10, 11, 12, 16, 24, 32, 48, 63)
CONTEXTS = (64, 512, 2048)
"""Tokens in the cache before the measured step. Only the first context is measured with all trees.

A longer context adds attention time, which is smooth in the number of nodes: a few trees suffice. Of several requests
only the first and the last context are measured.
"""
FEW_NODES = (0, 16, 63)

BATCHED_NODES = (0, 1, 2, 4, 8, 16)
"""Sizes of trees that are measured for several requests. Costs of larger ones are extrapolated well."""

PADDED_NODES, FEW_PADDED_NODES = FILLED_SIZES, (0, 1, 7, 31, 63)
"""Sizes of trees that are measured where they are padded, for any number of requests: costs are a staircase there.

The second are those of longer contexts. The first node alone may take as long as the next sixty, in attention.
"""

WIDE_SPREAD = 0.25
"""Spread above which a measurement counts as disturbed (:class:`~entmtp.policies.step_cost.CostTable`)."""

_REPETITIONS = 4
_WARM_UP = 1


class StepBench:
    """Runs real steps, each from the same state: ``batch`` requests of ``context`` tokens each."""

    def __init__(self, backbone: Backbone, heads: DraftHeads, batch: int, context: int, max_nodes: int) -> None:
        self.batch, self.context = batch, context
        # Capacity for the tree, padding included, and little more: with a long context and a large batch the cache
        # takes most of the memory.
        capacity = -(-(context + rounded_width(1 + max_nodes)) // ROUNDED_ROWS) * ROUNDED_ROWS
        self.state = DecodingState(backbone, heads, batch, capacity)
        prompt = [1 + at % (backbone.vocab_size - 1) for at in range(min(context, CONTEXTS[0]))]
        self._roots = [self.state.prefill(slot, prompt)[0] for slot in range(batch)]
        self._repeat_prompt(len(prompt))

    def step(self, policy: Policy, context: int | None = None) -> StepRecord:
        """Decode one step after ``context`` tokens, by default all, and restore the state."""
        self._truncate(context or self.context)
        sequences = [bare_sequence(slot, policy, root, 1.0) for slot, root in enumerate(self._roots)]
        decode_step(self.state, policy, sequences)
        self._truncate(self.context)
        return sequences[0].completion.steps[0]

    def _repeat_prompt(self, read: int) -> None:
        """Fill the cache with copies of the prompt: reading a long text would take longer than all steps."""
        for pool in self.state.cache.pools.values():
            for begin in range(read, self.context, read):
                count = min(read, self.context - begin)
                pool[:, :, :, 1 + begin : 1 + begin + count] = pool[:, :, :, 1 : 1 + count]
        self._truncate(self.context)

    def _truncate(self, context: int) -> None:
        for slot in range(self.batch):
            self.state.cache.truncate(slot, context)


def interleaved(work: Mapping[K, Callable[[], StepRecord]], repetitions: int) -> dict[K, dict[str, float]]:
    """Median milliseconds of each part of a step. All take turns, so that a drift of the machine affects all alike."""
    return medians(run_interleaved(work, repetitions))


def run_interleaved(
    work: Mapping[K, Callable[[], StepRecord]], repetitions: int, warm_up: int = _WARM_UP
) -> dict[K, list[StepRecord]]:
    """Run all in turns; returns their steps without the first ``warm_up`` rounds."""
    records: dict[K, list[StepRecord]] = {key: [] for key in work}
    for repetition in range(warm_up + repetitions):
        for key, step in work.items():
            record = step()
            if repetition >= warm_up:
                records[key].append(record)
    return records


def medians(records: Mapping[K, Sequence[StepRecord]]) -> dict[K, dict[str, float]]:
    """Median milliseconds of each part of a step."""
    return {
        key: {part: statistics.median(getattr(step, f"{part}_ms") for step in steps) for part in PARTS}
        for key, steps in records.items()
    }


def spread(records: Mapping[K, Sequence[StepRecord]]) -> float:
    """Relative difference between repetitions of one step, after differences between whole rounds are removed.

    It is the 90% quantile over all steps. A slow round affects all trees alike, but slow single steps distort their
    comparison.
    """
    took = [[sum(getattr(step, f"{part}_ms") for part in PARTS) for step in steps] for steps in records.values()]
    logs = np.log(np.array(took))  # [steps, rounds]
    logs -= np.median(logs, axis=1, keepdims=True)
    logs -= np.median(logs, axis=0, keepdims=True)
    return float(np.expm1(np.quantile(np.abs(logs), 0.9)))


def machine_cost(
    backbone: Backbone,
    heads: DraftHeads,
    cache_folder: Path,
    say: Callable[[str], None],
    slots: int,
    context: int | None = None,
) -> BatchedCost:
    """Cost of steps of up to ``slots`` requests: :func:`step_cost` at 1, 2, 4, ... and ``slots`` requests."""
    doubled = itertools.takewhile(lambda batch: batch < slots, (2**power for power in itertools.count()))
    return BatchedCost(
        measured={batch: step_cost(backbone, heads, cache_folder, say, batch, context) for batch in [*doubled, slots]}
    )


def cost_corrections(backbone: Backbone, heads: DraftHeads, cache_folder: Path) -> CostCorrectionFile:
    """Corrections of the step cost that earlier runs have learnt on this machine."""
    return CostCorrectionFile(correction_path(cache_folder, *cost_key(backbone, heads)))


def step_cost(
    backbone: Backbone,
    heads: DraftHeads,
    cache_folder: Path,
    say: Callable[[str], None],
    batch: int = 1,
    context: int | None = None,
) -> CostTable:
    """Cached step cost of this model and these heads on this hardware; measured now if there is none.

    It covers :data:`CONTEXTS` up to ``context`` tokens, by default the model's maximum.
    """
    contexts = _contexts(min(backbone.max_context, context or backbone.max_context), batch)
    path = cost_path(cache_folder, *cost_key(backbone, heads), batch)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        cost = read_cost(path, say)
        if cost is None or max(cost.contexts) < max(contexts):
            whose = "" if batch == 1 else f" for {batch} requests"
            say(f"measuring the cost of a step with {heads.kind} heads{whose} on this machine (once, under a minute)")
            cost = _measure_steadily(lambda: measure_cost(backbone, heads, contexts, batch), say)
            write_cost(path, cost)
    return cost


def cost_key(backbone: Backbone, heads: DraftHeads) -> tuple[str, str, str, str]:
    """Everything that a step's time depends on: hardware, model, heads, kernels, and widths of captured steps."""
    hardware = hardware_name(backbone.device, len(backbone.devices))
    kernels = f"{backbone.kernels_description}, {backbone.dtype}"
    if Graphs.on(backbone.devices).active:
        kernels += f", padded to {ROUNDED_WIDTHS}"
    return hardware, backbone.fingerprint, heads.fingerprint, kernels


def _contexts(longest: int, batch: int) -> list[int]:
    contexts = [CONTEXTS[0], *(tokens for tokens in CONTEXTS[1:] if tokens <= longest)]
    return contexts if batch == 1 else sorted({contexts[0], contexts[-1]})


def _measure_steadily(measure: Callable[[], CostTable], say: Callable[[str], None]) -> CostTable:
    """Measure; if the measurement was disturbed, measure once more and return the steadier result."""
    cost = measure()
    if cost.spread > WIDE_SPREAD:
        cost = min(cost, measure(), key=lambda each: each.spread)
    if cost.spread > WIDE_SPREAD:
        say(
            f"step costs were measured on a busy machine: spread of {cost.spread:.0%}; steps correct them as they run,"
            " and a first start on a quiet machine measures better"
        )
    return cost


def measure_cost(backbone: Backbone, heads: DraftHeads, contexts: Sequence[int], batch: int = 1) -> CostTable:
    """Measure whole steps with trees of each size, at each of ``contexts``: medians of interleaved runs.

    Drafting is measured at the first and the last level, as each level takes about as long as the one before it.
    """
    captures = Graphs.on(backbone.devices).active
    nodes = PADDED_NODES if captures else NODES if batch == 1 else BATCHED_NODES
    few_nodes = FEW_PADDED_NODES if captures else FEW_NODES
    wide_nodes = min(len(published_order()), nodes[-1])
    bench = StepBench(backbone, heads, batch=batch, context=contexts[-1], max_nodes=wide_nodes)

    def one_step(tree: Topology, context: int) -> Callable[[], StepRecord]:
        return lambda: bench.step(StaticPolicy(tree, entropy_window=8), context)

    trees = grid_trees(heads.num_heads, nodes, wide_nodes)
    verified = {key: tree for key, tree in trees.items() if key[0] == "verify"}
    drafted = {key: tree for key, tree in trees.items() if key[0] != "verify" and key[1] in (1, heads.num_heads)}
    few = {key: tree for key, tree in verified.items() if key[1] in few_nodes}
    if not bench.state.drafts_in_graphs:  # heads without a draft cache read no context
        few |= drafted
    work = {(contexts[0], *key): one_step(tree, contexts[0]) for key, tree in (verified | drafted).items()}
    work |= {(context, *key): one_step(tree, context) for context in contexts[1:] for key, tree in few.items()}
    # A captured step's first run is a plain call, and its second captures.
    records = run_interleaved(work, _REPETITIONS, _WARM_UP + captures)
    ms = medians(records)
    return CostTable(
        contexts=list(contexts),
        costs=[
            # As the steps were at the end: a model whose steps can't be captured is found out while it is measured.
            cost.model_copy(update={"padded": bench.state.graphs.active})
            for cost in _step_costs(ms, contexts, nodes, heads.num_heads, wide_nodes, cost_key(backbone, heads)[0])
        ],
        spread=spread(records),
    )


def _step_costs(
    ms: Mapping[tuple[int, str, int], Mapping[str, float]],
    contexts: Sequence[int],
    nodes: Sequence[int],
    levels: int,
    wide_nodes: int,
    hardware: str,
) -> list[StepCost]:
    """Costs at each context, from medians by context and tree; trees that were not measured are interpolated."""
    sizes: dict[str, Sequence[int]] = {"verify": nodes, "narrow": range(1, levels + 1), "wide": range(1, levels + 1)}
    took = {
        key: parts["draft"] if key[1] != "verify" else sum(parts.values()) - parts["draft"] for key, parts in ms.items()
    }
    times = {kind: np.zeros(len(its)) for kind, its in sizes.items()}
    costs = []
    for previous, context in itertools.pairwise((0, *contexts)):
        for kind, its in sizes.items():
            if measured := [size for size in its if (context, kind, size) in took]:
                # A longer context never takes less time: negative differences are noise.
                added = [
                    max(0.0, took[context, kind, size] - took.get((previous, kind, size), 0.0)) for size in measured
                ]
                times[kind] = times[kind] + np.interp(its, measured, added)
        costs.append(
            StepCost(
                nodes=list(nodes),
                verify_ms=times["verify"].tolist(),
                narrow_draft_ms=times["narrow"].tolist(),
                wide_draft_ms=times["wide"].tolist(),
                wide_nodes=wide_nodes,
                hardware=hardware,
            )
        )
    return costs


def grid_trees(max_depth: int, nodes: Sequence[int], wide_nodes: int | None = None) -> dict[tuple[str, int], Topology]:
    """Trees whose steps are measured for a :class:`StepCost`.

    The tree of ('verify', n) has n nodes. The tree of ('narrow', d) is a chain of depth d. The tree of ('wide', d) has
    depth d and ``wide_nodes`` nodes, by default as many as the published tree.
    """
    widest = len(published_order()) if wide_nodes is None else wide_nodes
    depths = range(1, max_depth + 1)
    trees = {("verify", size): sized_tree(size, max_depth) for size in nodes}
    trees |= {("narrow", depth): Topology.of([(0,) * at for at in range(1, depth + 1)]) for depth in depths}
    return trees | {("wide", depth): _wide_tree(depth, widest) for depth in depths}


def sized_tree(nodes: int, max_depth: int) -> Topology:
    """Tree of the first ``nodes`` of the published tree within ``max_depth``, then of more nodes at depth 1."""
    published = [path for path in published_order() if len(path) <= max_depth]
    wider = [(rank,) for rank in range(nodes)]
    paths = list(dict.fromkeys([*published, *wider]))[:nodes]
    return Topology.of(paths) if paths else Topology.root_only()


def _wide_tree(depth: int, nodes: int) -> Topology:
    """Tree of ``nodes`` nodes and this depth: a chain, then as :func:`sized_tree`."""
    chain = [(0,) * at for at in range(1, depth + 1)]
    return Topology.of(list(dict.fromkeys([*chain, *sized_tree(nodes, depth).paths]))[:nodes])
