"""Every variant of the Triton kernels, compiled for GPUs that need not be there.

    python -m tests.helpers.compiled_triton_kernels few

prints a JSON line for each: its name, target, shared memory in bytes, and bytes of the stack and of local memory, where
registers are spilled. It is a process of its own, since the interpreter's kernels can't be compiled.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from entmtp.models.kernels.triton.accept import accept_kernel
from entmtp.models.kernels.triton.add_norm import add_norm_kernel, norm_warps
from entmtp.models.kernels.triton.move_rows import COLUMNS, move_rows_kernel
from entmtp.models.kernels.triton.rope_write import HEADS_PER_PROGRAM, rope_write_kernel
from entmtp.models.kernels.triton.row_statistics import (
    BLOCK,
    MAX_TOP,
    block_statistics_kernel,
    merge_statistics_kernel,
)
from entmtp.models.kernels.triton.silu_mul import silu_mul_kernel
from entmtp.models.kernels.triton.tree_attention import (
    MAX_SPLITS,
    REGISTERS,
    STAGES,
    attend_kernel,
    combine_kernel,
    tile_of,
)

TARGETS = (80, 90)
"""Compute capabilities."""
BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}


@dataclass
class Variant:
    """One kernel with fixed types and sizes.

    Attributes:
        types: of arguments that aren't ``default``, nor fixed.
        fixed: values of the arguments that are known when it is compiled.
        default: the type of all other pointers.
    """

    name: str
    kernel: Any
    default: str
    types: dict[str, str]
    fixed: dict[str, Any]
    options: dict[str, int] = field(default_factory=lambda: {"num_warps": 4})

    def source(self) -> ASTSource:
        """The kernel with aligned pointers and strides, as those of caches and weights are."""
        names = self.kernel.arg_names
        signature = {
            name: "constexpr" if name in self.fixed else self.types.get(name, f"*{self.default}") for name in names
        }
        aligned = {
            (at,): [["tt.divisibility", 16]]
            for at, name in enumerate(names)
            if signature[name].startswith("*") or name.endswith("stride")
        }
        return ASTSource(self.kernel, signature, self.fixed, aligned)


def variants(dtype: str, every: bool) -> Iterator[Variant]:
    """Kernels for weights of a type, in sizes from small models' to those of 70B."""
    sizes = "i32"
    optional = (False, True) if every else (True,)
    for width, has_update in product((576, 4096, 8192, 16384) if every else (8192,), optional):
        block = triton.next_power_of_2(width)
        types, fixed = {"width": sizes, "eps": "fp32"}, {"has_update": has_update, "block": block}
        yield Variant(f"add_norm {width}", add_norm_kernel, dtype, types, fixed, {"num_warps": norm_warps(block)})
    for head_dim, has_norms in product((64, 80, 128, 256) if every else (128,), optional):
        types = dict.fromkeys(("slots", "cache_rows"), "*i64")
        types |= dict.fromkeys(("tokens_per_request", "slot_stride", "head_stride"), sizes) | {"eps": "fp32"}
        fixed = {"heads": 32, "kv_heads": 8, "head_dim": head_dim, "has_norms": has_norms}
        fixed |= {"heads_block": HEADS_PER_PROGRAM, "half_block": triton.next_power_of_2(head_dim // 2)}
        yield Variant(f"rope_write {head_dim}", rope_write_kernel, dtype, types, fixed)
    yield Variant("silu_mul", silu_mul_kernel, dtype, {"width": sizes}, {"block": 1024})
    yield from _attention(dtype, every)
    blocks = triton.cdiv(152_064, BLOCK)
    counts = {"count": MAX_TOP} if every else {"count": 4}
    statistics = dict.fromkeys(("values", "maxima", "sums", "moments", "top", "log_sum_exp", "entropy"), "*fp32")
    statistics |= {"indices": "*i32", "tokens": "*i64", "width": sizes, "blocks": sizes}
    yield Variant("block_statistics", block_statistics_kernel, dtype, statistics, counts | {"block": BLOCK})
    merged = {"blocks_block": triton.next_power_of_2(blocks)}
    merged["candidates_block"] = triton.next_power_of_2(blocks * counts["count"])
    yield Variant("merge_statistics", merge_statistics_kernel, dtype, statistics, counts | merged)
    names = ("tokens", "best", "parent", "depth", "bits", "nodes", "counts", "root", "report")
    types = dict.fromkeys(names, "*i64") | {"entropy": "*fp32", "finite": "*i1", "width": sizes, "depths": sizes}
    yield Variant("accept", accept_kernel, dtype, types, {"width_block": 64}, {"num_warps": 1})
    types = dict.fromkeys(("slots", "start", "nodes"), "*i64")
    types |= dict.fromkeys(("heads", "count", "block_stride", "slot_stride", "head_stride", "head_dim"), sizes)
    yield Variant("move_rows", move_rows_kernel, dtype, types, {"count_block": 16, "columns": COLUMNS})


def _attention(dtype: str, every: bool) -> Iterator[Variant]:
    for head_dim, queries, splits in product(
        (64, 80, 128, 256) if every else (128,),
        (1, 32, 64) if every else (1, 64),
        (1, MAX_SPLITS) if every else (MAX_SPLITS,),
    ):
        types = dict.fromkeys(("slots", "start", "bits", "positions"), "*i64") | {"scale": "fp32"}
        types |= {"log_sums": "*fp32"} | ({"outputs": "*fp32"} if splits > 1 else {})
        types |= dict.fromkeys(("n", "qkv_stride", "slot_stride", "head_stride", "window"), "i32")
        dim_block = triton.next_power_of_2(head_dim)
        tile = tile_of(queries, dim_block, BYTES[dtype])
        fixed = {"groups": 4, "kv_heads": 8, "head_dim": head_dim, "splits": splits, "query_block": tile.queries}
        fixed |= {"rows_block": tile.cache_rows, "dim_block": dim_block}
        options = {"num_warps": tile.warps, "num_stages": STAGES, "maxnreg": REGISTERS}
        name = f"attend {head_dim}, {queries} queries, {splits} splits"
        yield Variant(name, attend_kernel, dtype, types, fixed, options)
        if splits > 1 and queries == 1:
            types = {"parts": "*fp32", "log_sums": "*fp32"}
            blocks = {"splits_block": splits, "dim_block": dim_block}
            fixed = {"splits": splits, "head_dim": head_dim} | blocks
            yield Variant(f"combine {head_dim}", combine_kernel, dtype, types, fixed)


def main(every: bool) -> None:
    """Compile and print."""
    for dtype, capability in product(BYTES if every else ("bf16",), TARGETS):
        for variant in variants(dtype, every):
            made = triton.compile(
                variant.source(), target=GPUTarget("cuda", capability, 32), options=dict(variant.options)
            )
            found = {"name": f"{variant.name}, {dtype}", "capability": capability, "shared": made.metadata.shared}
            print(json.dumps(found | _memory(made.asm["cubin"])), flush=True)


def _memory(cubin: bytes) -> dict[str, int]:
    """Bytes a thread has on the stack and in local memory, by NVIDIA's ``cuobjdump``, which comes with Triton."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(cubin)
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", str(file)]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {key.lower(): int(value) for key, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", printed)}


if __name__ == "__main__":
    main(every=sys.argv[1] == "all")
