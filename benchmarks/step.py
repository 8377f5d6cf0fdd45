#!/usr/bin/env python3
"""Where a step's time goes, beside what the machine could do at best.

    python benchmarks/step.py
    python benchmarks/step.py --nodes 15 --batch 4 --context 512 --profile

Two floors are measured in the same run: the bytes that a step must read (every weight it uses once, and the cache)
over the machine's copy bandwidth, and its multiplications over the machine's matrix rate. A step can't be faster than
the larger of the two; the last column says how near it comes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch.profiler import profile

from entmtp.cli_errors import told_plainly
from entmtp.decoding.measure import PARTS, StepBench, interleaved
from entmtp.heads.base import DraftHeads
from entmtp.heads.checkpoint import bundled_heads, load_heads
from entmtp.models.backbone import Backbone
from entmtp.models.registry import load_model
from entmtp.scheduling.cost import hardware_name
from entmtp.scheduling.policies import StaticPolicy
from entmtp.settings import Kernels
from entmtp.trees.published import published_order
from entmtp.trees.topology import Topology

COPY_BYTES = 2**29
MATRIX_SIZE = 1536


@dataclass(frozen=True)
class Machine:
    """What this machine does at best, measured: bytes per ms (read and written) and multiply-adds per ms."""

    bytes_per_ms: float
    multiply_adds_per_ms: float


def main(
    model: Annotated[str, typer.Option(help="'bundled', a hub name or a local folder")] = "bundled",
    heads: Annotated[str, typer.Option(help="folder or hub name of the model's heads")] = str(bundled_heads("hydra")),
    nodes: Annotated[list[int] | None, typer.Option(help="node budgets, without the root; may repeat")] = None,
    batch: Annotated[int, typer.Option(min=1, help="requests in one step")] = 1,
    context: Annotated[int, typer.Option(min=1, help="tokens of each request before the step")] = 160,
    repetitions: Annotated[int, typer.Option(min=3, help="timed steps of each size")] = 20,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16")] = "float32",
    kernels: Annotated[str, typer.Option(help="auto, or eager for PyTorch's own")] = "auto",
    profiled: Annotated[bool, typer.Option("--profile", help="name each size's ten most expensive operators")] = False,
) -> None:
    """Print each part's median milliseconds by node budget, the two floors, and the step over the larger floor."""
    console = Console(width=110)
    chosen: Kernels = "eager" if kernels == "eager" else "auto"
    with told_plainly("step"):
        device = "cuda" if torch.cuda.is_available() else "cpu"
        loaded, _ = load_model(model, dtype=dtype, device=device)
        backbone = Backbone(loaded, chosen)
        drafter = load_heads(heads, backbone)
        machine = measure_machine(backbone.device, backbone.dtype)
        title = (
            f"one step, {batch} x {context} tokens of context, {backbone.dtype}, {backbone.kernels} kernels,"
            f" {drafter.kind} heads\n{hardware_name(backbone.device)}: copies"
            f" {machine.bytes_per_ms / 1e6:.1f} GB/s, multiplies {2 * machine.multiply_adds_per_ms / 1e9:.2f} TFLOP/s"
        )
        table = Table("nodes", *PARTS, "step ms", "bytes floor", "operations floor", "step / floor", title=title)
        budgets = nodes or [0, 1, 3, 7, 15, 31, 63]
        benches = {size: Bench(backbone, drafter, tree_of(size), batch, context) for size in budgets}
        steps = {size: partial(bench.step, bench.policy) for size, bench in benches.items()}
        for size, parts in interleaved(steps, repetitions).items():
            table.add_row(*_row(size, parts, benches[size].floors(machine, multiplied(loaded))))
        console.print(table)
        for size, bench in benches.items() if profiled else ():
            console.print(f"\n{size} nodes, ten most expensive operators of {repetitions} steps")
            console.print(operators(bench, repetitions), soft_wrap=True)


def _row(nodes: int, parts: dict[str, float], floors: tuple[float, float]) -> list[str]:
    step = sum(parts.values())
    times = [*(parts[part] for part in PARTS), step, *floors]
    return [str(nodes), *(f"{ms:.2f}" for ms in times), f"{step / max(floors):.2f}"]


def tree_of(nodes: int) -> Topology:
    """The first ``nodes`` of the published tree."""
    return Topology.of(published_order()[:nodes]) if nodes else Topology.root_only()


class Bench(StepBench):
    """Steps of one size, always from the same state."""

    def __init__(self, backbone: Backbone, heads: DraftHeads, topology: Topology, batch: int, context: int) -> None:
        super().__init__(backbone, heads, batch, context, topology.nodes)
        self.backbone, self.heads, self.topology = backbone, heads, topology
        self.policy = StaticPolicy(topology, entropy_window=8)

    def floors(self, machine: Machine, parameters: int) -> tuple[float, float]:
        """Least milliseconds that the step's bytes and its multiplications take.

        ``parameters`` are the model's that a step multiplies by: all, but for an embedding table of its own.
        """
        drafting = count(self.heads) + self.heads.output_weight.numel() if self.topology.nodes else 0
        cache = self.state.cache
        cached = cache.bytes * self.context // (cache.capacity + 1)
        size = self.backbone.dtype.itemsize
        tokens = self.batch * (1 + self.topology.nodes)
        return (
            (size * (parameters + drafting) + cached) / machine.bytes_per_ms,
            tokens * (parameters + cached / size / self.batch) / machine.multiply_adds_per_ms,
        )


def count(module: torch.nn.Module) -> int:
    """Parameters of a module."""
    return sum(weight.numel() for weight in module.parameters())


def multiplied(model: Any) -> int:
    """Parameters of the model that a step multiplies by; of an untied embedding table it only looks up rows."""
    embedding, output = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    return count(model) - (0 if output is embedding else embedding.numel())


@torch.inference_mode()
def measure_machine(device: torch.device, dtype: torch.dtype) -> Machine:
    """Copies and multiplies matrices that no cache holds."""
    source = torch.ones(COPY_BYTES // dtype.itemsize, dtype=dtype, device=device)
    target = torch.empty_like(source)
    copy_ms = _best_ms(lambda: target.copy_(source), device)
    left, right = (torch.ones(MATRIX_SIZE, MATRIX_SIZE, dtype=dtype, device=device) for _ in range(2))
    product_ms = _best_ms(lambda: left @ right, device)
    return Machine(2 * COPY_BYTES / copy_ms, MATRIX_SIZE**3 / product_ms)


def _best_ms(work: Callable[[], object], device: torch.device, repetitions: int = 10) -> float:
    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    times = []
    for _ in range(repetitions):
        wait()
        began = time.perf_counter()
        work()
        wait()
        times.append((time.perf_counter() - began) * 1e3)
    return min(times)


def operators(bench: Bench, steps: int) -> str:
    """A table of the operators that took most time."""
    with profile() as profiler:
        for _ in range(steps):
            bench.step(bench.policy)
    own_time = "self_cuda_time_total" if bench.backbone.device.type == "cuda" else "self_cpu_time_total"
    return str(profiler.key_averages().table(sort_by=own_time, row_limit=10, max_name_column_width=50))


if __name__ == "__main__":
    typer.run(main)
