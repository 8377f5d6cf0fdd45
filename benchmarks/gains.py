#!/usr/bin/env python3
"""Measure the gain of each optimisation: the whole system against itself without that one.

    python -m benchmarks.gains
    python -m benchmarks.gains --dtype bfloat16 --repetitions 200      # on a GPU

Real steps of all variants take turns at each size. A ratio of 1.2 means that a step takes 1.2 times as long without the
optimisation. Its interval is over paired repetitions. The library has no switches for this: variants are built here by
replacing the function that applies an optimisation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any
from unittest.mock import patch

import numpy as np
import torch
import typer

from benchmarks.lib.record import Cell, RecordOption, Table, UncommittedOption, deliver, make_record
from benchmarks.lib.timing import Clock, ladder_of
from entmtp.cli_errors import plain_errors
from entmtp.decoding.graphs import Graphs
from entmtp.decoding.measure_cost import StepBench, interleaved, sized_tree
from entmtp.heads.base import DraftHeads
from entmtp.heads.checkpoint import bundled_heads, load_heads
from entmtp.intervals import paired_ratio, ratio
from entmtp.models import transformers_backbone as backbones
from entmtp.models.build import build_backbone
from entmtp.models.kernels import packed_linear
from entmtp.models.kernels.block_weight import dequantize_layers, dequantized
from entmtp.models.kernels.choices import parse_kernels
from entmtp.models.kernels.packed_linear import replace_linear_layers
from entmtp.models.loading.load import load_model
from entmtp.models.transformers_backbone import TransformersBackbone
from entmtp.models.transformers_model import sharing_copy
from entmtp.policies.step_cost import hardware_name
from entmtp.settings import Kernels
from entmtp.trees.topology import Topology

TOKENS = (1, 4, 16, 32)
CONTEXT = 160
FULL = "everything on"
GRAPHS = "CUDA graphs"
Build = Callable[[Any], tuple[TransformersBackbone, DraftHeads]]
NOTES = (
    "A ratio is a step's wall-clock time without the optimisation over that with everything on; 1.00 is no gain.",
    "Intervals are 95%, over repetitions in pairs; one that holds 1 shows no gain at that size.",
)


def main(
    heads: Annotated[str, typer.Option(help="kind of the bundled model's heads")] = "hydra",
    repetitions: Annotated[int, typer.Option(min=3, help="timed steps of each variant and size")] = 20,
    kernels: Annotated[str, typer.Option(help="auto, or packed: those without a compiler")] = "auto",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16")] = "float32",
    record: RecordOption = None,
    uncommitted: UncommittedOption = False,
) -> None:
    """Print, for each optimisation, a step's time without it over that with everything on."""
    with plain_errors("gains"):
        device = "cuda" if torch.cuda.is_available() else "cpu"
        model, _ = load_model("bundled", dtype=dtype, device=device)
        builders = on_cuda(heads) if device == "cuda" else on_cpu(heads, parse_kernels(kernels))
        benches = {name: make_bench(build, model) for name, build in builders.items()}
        if GRAPHS in benches:
            benches[GRAPHS].state.graphs = Graphs(None)
        rows = gains(benches, repetitions)
        columns = ["without", *(f"{tokens} token{'s' * (tokens > 1)}" for tokens in TOKENS)]
        table = Table(title=f"step ms ({FULL}), then times as long without", columns=columns, rows=rows)
        words = benches[FULL].state.backbone.kernels_description
        title = f"What each optimisation gains: bundled model, {heads} heads, {words}"
        hardware = hardware_name(torch.device(device))
        deliver(
            make_record("gains", title, hardware, [table], [*NOTES, f"{repetitions} repetitions."]), record, uncommitted
        )


def gains(benches: Mapping[str, StepBench], repetitions: int) -> list[list[Cell]]:
    """Build a row per variant with a cell per size; the variant :data:`FULL` comes first and has milliseconds."""
    columns = [_column(benches, tokens, repetitions) for tokens in TOKENS]
    return [[name, *(column[name] for column in columns)] for name in benches]


def _column(benches: Mapping[str, StepBench], tokens: int, repetitions: int) -> dict[str, str]:
    clocks = {name: Clock(partial(bench.step, ladder_of(_tree(bench, tokens)))) for name, bench in benches.items()}
    interleaved(clocks, repetitions)
    walls = {name: np.array(clock.walls[-repetitions:]) for name, clock in clocks.items()}
    return cells(walls)


def _tree(bench: StepBench, tokens: int) -> Topology:
    assert bench.state.heads is not None
    return sized_tree(tokens - 1, bench.state.heads.num_heads)


def cells(walls: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Format milliseconds by variant ``[repetitions]``: the full system's median, and the others' ratios to it."""
    full = walls[FULL]
    ratios = {name: ratio(paired_ratio(wall, full).estimate()) for name, wall in walls.items()}
    return ratios | {FULL: f"{np.median(full):.1f} ms"}


def make_bench(build: Build, model: Any) -> StepBench:
    """Build the step benchmark of a variant."""
    backbone, drafter = build(model)
    return StepBench(backbone, drafter, 1, CONTEXT, max(TOKENS) - 1)


def on_cpu(kind: str, kernels: Kernels) -> dict[str, Build]:
    """List the full system and its variants on a CPU, by the optimisation that they lack."""
    full = _backbone_by(lambda model: build_backbone(model, kernels), kind)
    layers = {
        "GGUF's blocks (float32 weights instead)": _backbone_by(_without_blocks, kind),
        "fused layers": _backbone_by(_without_fused_layers, kind),
        "fused products (oneDNN's instead)": _backbone_by(lambda model: build_backbone(model, "packed"), kind),
    }
    if kernels == "packed":
        layers = {
            "merged products of siblings": _backbone_by(_without_merged_projections, kind),
            "packed grouped-query attention": _backbone_by(_with_sdpa, kind),
        }
    return {
        FULL: full,
        **layers,
        "any of these (PyTorch's own)": _backbone_by(lambda model: build_backbone(model, "eager"), kind),
        "the output layer's product": _backbone_by(lambda model: _without_output_product(model, kernels), kind),
        "the heads' products": lambda model: _without_head_products(*full(model)),
    }


def on_cuda(kind: str) -> dict[str, Build]:
    """List the full system and its variants on a GPU, where products are PyTorch's and steps are captured."""
    return {
        FULL: _backbone_by(TransformersBackbone, kind),
        "packed grouped-query attention": _backbone_by(lambda model: _with_sdpa(model, "auto"), kind),
        GRAPHS: _backbone_by(TransformersBackbone, kind),
    }


def _backbone_by(make: Callable[[Any], TransformersBackbone], kind: str) -> Build:
    def build(model: Any) -> tuple[TransformersBackbone, DraftHeads]:
        backbone = make(model)
        return backbone, load_heads(bundled_heads(kind), backbone)

    return build


def _without_blocks(model: Any) -> TransformersBackbone:
    """Build a backbone with the weights that the blocks stand for."""
    plain = sharing_copy(model)
    dequantize_layers(plain)
    return build_backbone(plain, "fused")


def _without_fused_layers(model: Any) -> TransformersBackbone:
    """Build a backbone with fused products in the model's own layers."""
    with patch.object(backbones, "fused_decoder", lambda *parts: None):
        return build_backbone(model, "fused")


def _without_merged_projections(model: Any) -> TransformersBackbone:
    """Build a backbone with layers that are packed one by one."""
    with patch.object(packed_linear, "merge_linear_layers", lambda layers, groups, make: None):
        return build_backbone(model, "packed")


def _without_output_product(model: Any, kernels: Kernels) -> TransformersBackbone:
    """Build a backbone in which only the decoder's products are replaced."""

    def replace(layers: Any, siblings: Any, make: Any, keep_weight: Any, leave: Any) -> None:
        replace_linear_layers(getattr(layers, layers.base_model_prefix), siblings, make, keep_weight, leave)
        output = torch.nn.ModuleDict({"layer": layers.get_output_embeddings()})
        dequantize_layers(output)
        layers.set_output_embeddings(output["layer"])

    with patch.object(backbones, "replace_linear_layers", replace):
        return build_backbone(model, kernels)


def _with_sdpa(model: Any, kernels: Kernels = "packed") -> TransformersBackbone:
    """Build a backbone with transformers' sdpa attention, which repeats keys and values for each query head."""
    backbone = build_backbone(model, kernels)
    backbone.model.set_attn_implementation("sdpa")
    return backbone


def _without_head_products(
    backbone: TransformersBackbone, heads: DraftHeads
) -> tuple[TransformersBackbone, DraftHeads]:
    weights = {name: (dequantized(weight), bias) for name, (weight, bias) in heads.linear_weights().items()}

    def linear(name: str, states: Any, rows: int | None = None) -> Any:
        weight, bias = weights[name]
        return torch.nn.functional.linear(states, weight[:rows], None if bias is None else bias[:rows])

    heads.linear = linear  # type: ignore[method-assign]
    return backbone, heads


if __name__ == "__main__":
    typer.run(main)
