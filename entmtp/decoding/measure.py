"""Measures the step cost of a model with its heads on this machine, in seconds rather than minutes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from filelock import FileLock

from entmtp.decoding.acceptance import greedy
from entmtp.heads.base import DraftHeads
from entmtp.models.backbone import Backbone
from entmtp.models.cache import TreeCache
from entmtp.scheduling.cost import StepCost, cost_file, hardware_name, read_cost, write_cost
from entmtp.trees.batch import TreeBatch
from entmtp.trees.published import published_order
from entmtp.trees.topology import Topology

NODES = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 63)
CONTEXT = 160
"""Tokens before the measured step: about the middle of a short answer."""

_REPETITIONS = 5


def step_cost(backbone: Backbone, heads: DraftHeads, cache_folder: Path, say: Callable[[str], None]) -> StepCost:
    """The cached cost of this model and these heads on this hardware, measured now if there is none."""
    hardware = hardware_name(backbone.device)
    kernels = f"{backbone.kernels} {backbone.dtype}"
    path = cost_file(cache_folder, hardware, backbone.fingerprint, heads.fingerprint, kernels)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        cost = read_cost(path)
        if cost is None:
            say(f"measuring the cost of a step with {heads.kind} heads on this machine (once, a few seconds)")
            cost = measure_cost(backbone, heads, hardware)
            write_cost(path, cost)
    return cost


@torch.inference_mode()
def measure_cost(backbone: Backbone, heads: DraftHeads, hardware: str) -> StepCost:
    """Medians of interleaved repetitions, so that a drift of the machine touches every size alike."""
    cache = backbone.new_cache(slots=1, capacity=CONTEXT + NODES[-1] + 1)
    backbone.prefill([1] * CONTEXT, 0, cache)
    verify = {nodes: _verify(backbone, cache, Topology.of(published_order()[:nodes])) for nodes in NODES[1:]}
    verify[0] = _verify(backbone, cache, Topology.root_only())
    depths = range(1, heads.num_heads + 1)
    narrow = {
        depth: _draft(backbone, heads, Topology.of([(0,) * at for at in range(1, depth + 1)])) for depth in depths
    }
    wide_nodes = len(published_order())
    wide = {depth: _draft(backbone, heads, _wide(depth, wide_nodes)) for depth in depths}
    timed = [verify[nodes] for nodes in NODES] + [narrow[depth] for depth in depths] + [wide[depth] for depth in depths]
    medians = _interleaved_medians(timed, backbone.device)
    return StepCost(
        nodes=list(NODES),
        verify_ms=medians[: len(NODES)],
        narrow_draft_ms=medians[len(NODES) : len(NODES) + len(depths)],
        wide_draft_ms=medians[len(NODES) + len(depths) :],
        wide_nodes=wide_nodes,
        hardware=hardware,
    )


def _wide(depth: int, nodes: int) -> Topology:
    """A tree of ``nodes`` nodes and this depth: a chain, the published tree's paths, then a wider first level."""
    chain = [(0,) * at for at in range(1, depth + 1)]
    published = [path for path in published_order() if len(path) <= depth]
    wider = [(rank,) for rank in range(nodes)]
    return Topology.of(list(dict.fromkeys([*chain, *published, *wider]))[:nodes])


def _verify(backbone: Backbone, cache: TreeCache, topology: Topology) -> Callable[[], None]:
    trees = TreeBatch.of([topology], backbone.device)
    tokens = torch.arange(trees.width, device=backbone.device)[None] + 1

    def step() -> None:
        logits = backbone.logits(backbone.verify(tokens, trees, [0], cache))
        cache.commit([path.nodes for path in greedy(tokens, logits, trees)])
        cache.lengths[0] = CONTEXT

    return step


def _draft(backbone: Backbone, heads: DraftHeads, topology: Topology) -> Callable[[], None]:
    trees = TreeBatch.of([topology], backbone.device)
    hidden = torch.ones(1, backbone.hidden_size, device=backbone.device, dtype=backbone.dtype)
    root = torch.ones(1, dtype=torch.int64, device=backbone.device)

    def draft() -> None:
        # Read back, so that a device's queue is empty when the clock stops.
        heads.propose(hidden, root, trees).tokens.sum().item()

    return draft


def _interleaved_medians(timed: list[Callable[[], None]], device: torch.device) -> list[float]:
    times: list[list[float]] = [[] for _ in timed]
    for repetition in range(_REPETITIONS + 1):
        for number, run in enumerate(timed):
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            began = time.perf_counter()
            run()
            if repetition:  # the first round warms up
                times[number].append((time.perf_counter() - began) * 1e3)
    return [statistics.median(each) for each in times]
