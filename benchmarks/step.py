#!/usr/bin/env python3
"""Where a step's time goes, next to what the machine could do at best.

    python -m benchmarks.step
    python -m benchmarks.step --nodes 0 --nodes 15 --batch 1 --batch 4 --context 512 --profile
    python -m benchmarks.step --shape vicuna-7b --dtype bfloat16 --churn 1000      # on a GPU: random weights
    python -m benchmarks.step --shape tiny                                         # shows the same in seconds

Two floors are measured in the same run: the bytes that a step must read over the machine's copy bandwidth, and its
multiplications over the machine's matrix rate (:mod:`benchmarks.lib.roofline`). One table for each batch and context;
its sizes take turns. ``--save-profile FILE`` keeps the costs as a hardware profile
(:mod:`entmtp.policies.hardware_profile`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch.profiler import profile

from benchmarks.lib.bars import cpu_bars, cuda_bars
from benchmarks.lib.fixed_depth import FixedDepthPolicy
from benchmarks.lib.record import Cell, Record, RecordOption, Table, UncommittedOption, deliver, make_record
from benchmarks.lib.roofline import Work, measure_machine, step_work
from benchmarks.lib.shapes import SHAPES, random_heads, random_model, shape_of
from benchmarks.lib.timing import StepTime, churn, ladder_of, timed_steps
from entmtp.cli_errors import plain_errors
from entmtp.decoding.graphs import Graphs
from entmtp.decoding.measure_cost import NODES, StepBench, grid_trees
from entmtp.decoding.outputs import PARTS
from entmtp.errors import EntMTPError
from entmtp.heads.base import DraftHeads
from entmtp.heads.checkpoint import BUNDLED_KINDS, bundled_heads, load_heads
from entmtp.models.backbone import Backbone
from entmtp.models.build import build_backbone
from entmtp.models.kernels.choices import parse_kernels
from entmtp.models.loading.load import load_model
from entmtp.policies.base import Policy
from entmtp.policies.hardware_profile import HardwareProfile, ProfilePoint, ProfileProvenance
from entmtp.policies.step_cost import hardware_name
from entmtp.trees.batch import FILLED_SIZES
from entmtp.trees.published import published_order
from entmtp.trees.topology import Topology

TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SIZES = (0, 1, 3, 7, 15, 31, 63)
CONTEXT = 160
COLUMNS = ("nodes", *PARTS, "rest", "step ms", "over plain", "bytes floor", "operations floor", "step / floor")
NOTES = (
    "step ms is the wall clock around a whole step; rest is what no part covers, the host's own work.",
    "policy is a ladder's: signals, thresholds, the batch of trees and the cache rows that they may use.",
)
Times = Mapping[tuple[str, int], StepTime]


def main(
    model: Annotated[str, typer.Option(help="'bundled', a hub name, a local folder or a GGUF file")] = "bundled",
    heads: Annotated[str, typer.Option(help="kind, for the bundled model or a shape; or folder or hub name")] = "hydra",
    shape: Annotated[str | None, typer.Option(help=f"random weights instead: {', '.join(SHAPES)}")] = None,
    nodes: Annotated[list[int] | None, typer.Option(min=0, help="node budgets, without the root; may repeat")] = None,
    batch: Annotated[list[int] | None, typer.Option(min=1, help="requests in one step; may repeat")] = None,
    context: Annotated[list[int] | None, typer.Option(min=1, help="tokens before the step; may repeat")] = None,
    repetitions: Annotated[int, typer.Option(min=3, help="timed steps of each size")] = 20,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16")] = "float32",
    kernels: Annotated[str, typer.Option(help="as of entmtp generate")] = "auto",
    churned: Annotated[int, typer.Option("--churn", min=0, help="steps with changing random trees at the end")] = 0,
    profiled: Annotated[bool, typer.Option("--profile", help="name each size's ten most expensive operators")] = False,
    save_profile: Annotated[Path | None, typer.Option(help="write the costs there as a hardware profile")] = None,
    record: RecordOption = None,
    uncommitted: UncommittedOption = False,
) -> None:
    """Print each part's median milliseconds by node budget, the two floors, and what the bars say."""
    with plain_errors("step"):
        loaded, backbone, drafter = subject(model, heads, shape, dtype, kernels)
        padded = Graphs.on(backbone.devices).active
        sizes = sorted(set(nodes or ((FILLED_SIZES if padded else NODES) if save_profile else SIZES)))
        grid = list(itertools.product(sorted(set(batch or [1])), sorted(set(context or [CONTEXT]))))
        _check(backbone, grid, sizes, save_profile)
        trees = grid_trees(drafter.num_heads, sizes)
        if save_profile is None:
            trees = {key: tree for key, tree in trees.items() if key[0] == "verify"}
        policies: dict[tuple[str, int], Policy] = {key: ladder_of(tree) for key, tree in trees.items()}
        if save_profile is not None:
            policies |= {("expanded", depth): FixedDepthPolicy(depth) for depth in range(1, drafter.num_heads + 1)}
        machine = measure_machine(backbone.device, backbone.dtype)
        tables, notes, points = [], [f"This machine {machine.text}.", *NOTES], []
        for requests, tokens in grid:
            where = f"batch {requests}, context {tokens}"
            bench = StepBench(backbone, drafter, requests, tokens, max(tree.nodes for tree in trees.values()))
            times = timed_steps(bench, policies, repetitions)
            plain = {size: times["verify", size] for size in sizes}
            works = {size: work_of(bench, loaded, drafter, trees["verify", size]) for size in sizes}
            floors = {size: work.floors(machine) for size, work in works.items()}
            tables.append(table_of(where, plain, floors))
            # The bars are about a single request; more of them are another load.
            notes += [f"{where}: {sentence}" for sentence in _bars(backbone, plain, floors) if requests == 1]
            if save_profile is not None:
                points.append(profile_point(requests, tokens, sizes, drafter.num_heads, times))
            if profiled:
                tables += [operators(bench, size, trees["verify", size], repetitions) for size in sizes]
            if churned:
                notes.append(f"{where}: {churn(bench, max(sizes), drafter.num_heads, churned).text}")
            notes += _peak(where)
            del bench  # the next one's cache needs the room
        what = f"{shape or model}, {drafter.kind} heads, {backbone.dtype}, {backbone.kernels} kernels"
        measured = make_record("step", f"One step: {what}", hardware_name(backbone.device), tables, notes)
        if save_profile is not None:
            made = make_profile(
                profile_origin(measured, backbone, drafter, shape or model), sizes, grid, points, padded
            )
            made.save(save_profile)
        deliver(measured, record, uncommitted)


def subject(model: str, heads: str, shape: str | None, dtype: str, kernels: str) -> tuple[Any, Backbone, DraftHeads]:
    """The model as transformers has it, the same as a backbone, and its heads."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    chosen = parse_kernels(kernels)
    if shape is not None:
        loaded = random_model(shape_of(shape), device, torch_type(dtype))
        backbone = build_backbone(loaded, chosen)
        return loaded, backbone, random_heads(shape_of(shape), heads, backbone)
    loaded, _ = load_model(model, dtype=dtype, device=str(device))
    backbone = build_backbone(loaded, chosen)
    return loaded, backbone, load_heads(bundled_heads(heads) if heads in BUNDLED_KINDS else heads, backbone)


def torch_type(dtype: str) -> torch.dtype:
    """Raises EntMTPError for a name that is no floating-point type of models."""
    if dtype not in TYPES:
        raise EntMTPError(f"dtype: '{dtype}' is unknown; choose one of {', '.join(TYPES)}")
    return TYPES[dtype]


def _check(
    backbone: Backbone, grid: Iterable[tuple[int, int]], sizes: Sequence[int], save_profile: Path | None
) -> None:
    """Raises EntMTPError before anything is measured in vain."""
    if save_profile is not None and (sizes[0] != 0 or len(sizes) < 2):
        raise EntMTPError(f"nodes: {sizes} make no profile; give 0 (plain decoding) and at least one more")
    if (longest := max(tokens for _, tokens in grid) + max(sizes)) > backbone.max_context:
        raise EntMTPError(
            f"context: with its tree it takes {longest} of the model's {backbone.max_context} positions; ask for fewer"
        )


def work_of(bench: StepBench, model: Any, heads: DraftHeads, tree: Topology) -> Work:
    """Work that a step of ``bench`` with this tree can't do without."""
    cache = bench.state.cache
    values = sum(pool.numel() for pool in cache.pools.values()) * bench.context // (cache.capacity + 1)
    return step_work(model, heads, tree, bench.batch, values)


def table_of(where: str, times: Mapping[int, StepTime], floors: Mapping[int, tuple[float, float]]) -> Table:
    """Milliseconds by node budget; 'over plain' needs plain decoding among the sizes."""
    rows: list[list[Cell]] = []
    for size, time in times.items():
        over = f"{time.wall_ms / times[0].wall_ms:.2f}" if 0 in times else "–"
        parts = [f"{time.parts[part]:.2f}" for part in PARTS]
        bytes_ms, operations_ms = floors[size]
        nearest = f"{time.wall_ms / max(floors[size]):.2f}"
        ms = [f"{time.rest_ms:.2f}", f"{time.wall_ms:.2f}"]
        rows.append([size, *parts, *ms, over, f"{bytes_ms:.2f}", f"{operations_ms:.2f}", nearest])
    return Table(title=f"ms of a step by node budget, {where}", columns=list(COLUMNS), rows=rows)


def _bars(
    backbone: Backbone, times: Mapping[int, StepTime], floors: Mapping[int, tuple[float, float]]
) -> Iterable[str]:
    if backbone.device.type == "cuda":
        return cuda_bars(times, {size: bytes_ms for size, (bytes_ms, _) in floors.items()})
    return cpu_bars(times)


def _peak(where: str) -> Iterable[str]:
    if torch.cuda.is_available():
        yield f"{where}: the allocator's peak was {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB."


def operators(bench: StepBench, size: int, tree: Topology, steps: int) -> Table:
    """The ten operators that took most time of their own."""
    policy = ladder_of(tree)
    with profile() as profiler:
        for _ in range(steps):
            bench.step(policy)
    on_device = torch.cuda.is_available()
    own = [
        (event.self_device_time_total if on_device else event.self_cpu_time_total, event)
        for event in profiler.key_averages()
    ]
    total = sum(time for time, _ in own) or 1.0
    dearest = sorted(own, key=lambda item: item[0], reverse=True)[:10]
    return Table(
        title=f"most expensive operators with {size} nodes, batch {bench.batch}, context {bench.context}",
        columns=["operator", "calls a step", "ms a step", "share"],
        rows=[
            [event.key[:60], f"{event.count / steps:.0f}", f"{time / steps / 1e3:.2f}", f"{time / total:.0%}"]
            for time, event in dearest
        ],
    )


def profile_point(batch: int, context: int, sizes: Sequence[int], heads: int, times: Times) -> ProfilePoint:
    """One point of a hardware profile, from the times of its trees."""
    parts = {
        f"{part}_ms": [times["verify", size].parts[part] for size in sizes]
        for part in ("policy", "verify", "accept", "compact")
    }
    drafts = {
        f"{kind}_draft_ms": [times[kind, depth].parts["draft"] for depth in range(1, heads + 1)]
        for kind in ("narrow", "wide")
    }
    drafts["grown_draft_ms"] = [
        expanded_draft_ms(times["expanded", depth], times["narrow", depth]) for depth in range(1, heads + 1)
    ]
    rest = [times["verify", size].rest_ms for size in sizes]
    return ProfilePoint.model_validate({"batch": batch, "context": context, "rest_ms": rest} | parts | drafts)


def expanded_draft_ms(expanded: StepTime, filled: StepTime) -> float:
    """Milliseconds of drafting where the tree grows: what the heads take, and what the host does more than a ladder's.

    ``filled`` is a step whose tree was chosen before the heads ran. Between levels the host waits for the device.
    """
    more = expanded.parts["policy"] + expanded.rest_ms - filled.parts["policy"] - filled.rest_ms
    return expanded.parts["draft"] + max(0.0, more)


def profile_origin(measured: Record, backbone: Backbone, heads: DraftHeads, model: str) -> ProfileProvenance:
    """The provenance of a hardware profile: that of the record of the same run."""
    return ProfileProvenance(
        hardware=measured.machine,
        date=measured.date,
        command=measured.command,
        commit=measured.commit,
        model=model,
        heads_kind=heads.kind,
        dtype=str(backbone.dtype).removeprefix("torch."),
        kernels=backbone.kernels,
        versions=measured.versions,
    )


def make_profile(
    origin: ProfileProvenance,
    sizes: Sequence[int],
    grid: Sequence[tuple[int, int]],
    points: Sequence[ProfilePoint],
    padded: bool,
) -> HardwareProfile:
    """A hardware profile of a ``grid`` of batches and contexts, each with its point.

    Where trees were ``padded``, costs are a staircase only if its stairs were measured.
    """
    return HardwareProfile(
        measured=origin,
        nodes=list(sizes),
        batches=sorted({batch for batch, _ in grid}),
        contexts=sorted({context for _, context in grid}),
        wide_nodes=len(published_order()),
        padded=padded and set(sizes) <= set(FILLED_SIZES),
        points=list(points),
    )


if __name__ == "__main__":
    typer.run(main)
