#!/usr/bin/env python3
"""Errors of the cost model on steps that it was not measured on: other trees, other lengths of context.

    python -m benchmarks.cost

The cost of a step is measured as at a first start, then whole steps with trees of the bundled banks, of sizes between
those of its grid and of each depth, after contexts of several lengths; all trees of a context interleaved.
"""

from __future__ import annotations

import statistics
import time
from functools import partial
from typing import Annotated

import typer

from benchmarks.lib.record import Cell, RecordOption, Table, UncommittedOption, deliver, make_record
from entmtp.cli_errors import plain_errors
from entmtp.decoding.measure_cost import CONTEXTS as MEASURED
from entmtp.decoding.measure_cost import NODES, StepBench, interleaved, measure_cost
from entmtp.heads.base import DraftHeads
from entmtp.heads.checkpoint import BUNDLED_KINDS, bundled_heads, load_heads
from entmtp.models.backbone import Backbone
from entmtp.models.build import build_backbone
from entmtp.models.loading.load import load_model
from entmtp.policies.static import StaticPolicy
from entmtp.policies.step_cost import TYPICAL_CONTEXT, StepCost, hardware_name
from entmtp.trees.bank import TreeBank, bundled_bank, load_bank
from entmtp.trees.topology import Topology

SIZES = (0, 5, 10, 20, 40)
CONTEXTS = (64, TYPICAL_CONTEXT, 512, 1024, 2048, 4096)
NOTES = (
    f"The cost model: medians at {', '.join(map(str, NODES))} nodes and at each depth, after"
    f" {', '.join(map(str, MEASURED))} tokens, linear between and beyond.",
    "Trees are those of the bundled gsm8k bank, of each depth and of sizes that the model was not measured at.",
    "error: (predicted - measured) / measured. A policy compares trees with each other: what counts is how errors"
    " differ from tree to tree, not what all have in common; spread is the standard deviation of the errors.",
    f"one context: predicted as if all contexts were of {TYPICAL_CONTEXT} tokens.",
)


def main(
    repetitions: Annotated[int, typer.Option(min=1, help="steps with each tree")] = 9,
    record: RecordOption = None,
    uncommitted: UncommittedOption = False,
) -> None:
    """Print predicted and measured milliseconds of steps, and how far they differ."""
    with plain_errors("cost"):
        model, _ = load_model("bundled")
        backbone = build_backbone(model)
        hardware = hardware_name(backbone.device)
        steps: list[list[Cell]] = []
        errors: list[list[Cell]] = []
        starts: list[list[Cell]] = []
        for kind in BUNDLED_KINDS:
            heads = load_heads(bundled_heads(kind), backbone)
            began = time.perf_counter()
            table = measure_cost(backbone, heads, MEASURED)
            starts.append([kind, f"{time.perf_counter() - began:.1f}", f"{table.spread:.1%}"])
            trees = held_out(load_bank(bundled_bank("gsm8k", kind)))
            for context in CONTEXTS:
                measured = milliseconds(backbone, heads, trees, context, repetitions)
                steps += rows(kind, context, table.at(context), measured)
                errors.append([kind, context, "all", *summary(table.at(context), measured)])
                errors.append([kind, context, "one context", *summary(table.typical, measured)])
        tables = [
            Table(title="first start", columns=["heads", "seconds", "spread"], rows=starts),
            Table(
                title="errors", columns=["heads", "context", "model", "trees", "mean", "spread", "largest"], rows=errors
            ),
            Table(
                title="steps",
                columns=["heads", "context", "nodes", "depth", "predicted ms", "measured ms", "error"],
                rows=steps,
            ),
        ]
        title = "How well the cost of a step is predicted"
        deliver(make_record("cost", title, hardware, tables, NOTES), record, uncommitted)


def held_out(bank: TreeBank) -> list[Topology]:
    """Trees of each depth of a bank, in :data:`SIZES`."""
    trees = [one.tree(size) for size in SIZES for one in bank.by_depth]
    # A frontier that ends earlier gives a smaller tree.
    return list({tree.paths: tree for tree in trees if tree.nodes in SIZES}.values())


def milliseconds(
    backbone: Backbone, heads: DraftHeads, trees: list[Topology], context: int, repetitions: int
) -> dict[Topology, float]:
    """Median milliseconds of whole steps after ``context`` tokens, by tree."""
    bench = StepBench(backbone, heads, 1, context, max(tree.nodes for tree in trees))
    work = {tree: partial(bench.step, StaticPolicy(tree, entropy_window=8)) for tree in trees}
    return {tree: sum(parts.values()) for tree, parts in interleaved(work, repetitions).items()}


def rows(kind: str, context: int, cost: StepCost, measured: dict[Topology, float]) -> list[list[Cell]]:
    """A row per tree."""
    return [
        [kind, context, tree.nodes, tree.max_depth, f"{cost(tree):.1f}", f"{ms:.1f}", f"{error(cost, tree, ms):+.1%}"]
        for tree, ms in measured.items()
    ]


def summary(cost: StepCost, measured: dict[Topology, float]) -> list[Cell]:
    """Number of trees, and their errors' mean, spread and largest size."""
    errors = [error(cost, tree, ms) for tree, ms in measured.items()]
    largest = max(map(abs, errors))
    return [len(errors), f"{statistics.mean(errors):+.1%}", f"{statistics.pstdev(errors):.1%}", f"{largest:.1%}"]


def error(cost: StepCost, tree: Topology, ms: float) -> float:
    """Relative error of the predicted time."""
    return cost(tree) / ms - 1


if __name__ == "__main__":
    typer.run(main)
