"""Verification of ragged batches of trees against float64: every choice of kernels that runs on the device.

Triton's kernels are compared one by one too (:mod:`benchmarks.gpu.kernel_errors`), so that a wrong one has a name.
Each request has a prompt and a tree of another size. The reference is transformers' model with the same weights in
float64, run alone on each path from the root to a leaf: it knows neither trees nor their cache.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from benchmarks.gpu import kernel_errors
from benchmarks.gpu.assignment import Assignment, Sheet, print_table
from benchmarks.lib.record import Cell, Table
from benchmarks.lib.timing import random_tree
from entmtp.errors import EntMTPError
from entmtp.models.backbone import Backbone
from entmtp.models.build import build_backbone
from entmtp.models.kernels.choices import HALF_TOLERANCE, TOLERANCE, supported_kernels
from entmtp.models.selftest import difference
from entmtp.settings import Kernels
from entmtp.trees.batch import TreeBatch
from entmtp.trees.topology import Path, Topology

BOUNDS = {torch.float32: TOLERANCE, torch.bfloat16: HALF_TOLERANCE}
"""Allowed max |dlogit| / max |logit|, as of the self-test at load."""
_COMMON: dict[str, Any] = {
    "vocab_size": 1000,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "head_dim": 64,
    "max_position_embeddings": 1024,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
    # Wide enough that attention and output are far from uniform, so that a wrong mask shows.
    "initializer_range": 0.1,
}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 4, "tie_word_embeddings": False},
    "llama, grouped queries": {"num_key_value_heads": 2, "tie_word_embeddings": False},
    "qwen3": {"num_key_value_heads": 2},
    "mistral": {"num_key_value_heads": 2, "sliding_window": 48},
}
PROMPTS = (7, 130, 40, 257)
NODES = (63, 0, 5, 30)
DEPTH = 5
BATCHES = 3
KERNEL_COLUMNS = ["kernel", "type", "max relative error", "bound", "result"]
COLUMNS = ["model", "type", "kernels", "batches", "max relative error", "bound", "result"]
NOTES = [
    f"Each batch has requests with prompts of {', '.join(map(str, PROMPTS))} tokens and random trees of"
    f" {', '.join(map(str, NODES))} nodes. The error is the largest difference of a logit over the largest logit.",
    "Every choice of kernels that the device has and that doesn't round is compared.",
]


def measure(assignment: Assignment) -> None:
    """Compare every choice of kernels with float64, in float32 and in bfloat16."""
    table = Table(title="verification against float64", columns=COLUMNS, rows=[])
    alone = Table(title="Triton's kernels alone against float64", columns=KERNEL_COLUMNS, rows=[])
    triton = [
        dtype for dtype in kernel_errors.BOUNDS if "triton" in supported_kernels("auto", dtype, assignment.device)
    ]
    tables = [table, alone] if triton else [table]
    sheet = Sheet(assignment, "accuracy", "Verification against float64", NOTES, tables)
    names = list(MODELS)[: assignment.pick(len(MODELS), 2)]
    batches = assignment.pick(BATCHES, 1)
    cells = {
        f"{name} in {_named(dtype)}": partial(_cell, table, name, dtype, assignment.device, batches)
        for dtype in BOUNDS
        for name in names
    }
    for dtype in triton:
        sizes = assignment.pick(kernel_errors.Sizes(), kernel_errors.DRY)
        cells[f"Triton's kernels in {_named(dtype)}"] = partial(_alone, alone, dtype, assignment.device, sizes)
    sheet.fill(cells)
    for each in sheet.tables:
        print_table(each)


def _cell(table: Table, name: str, dtype: torch.dtype, device: torch.device, batches: int) -> None:
    """Raises EntMTPError if a choice exceeds the bound or is refused; its row is there all the same."""
    model = _model(name, dtype, device)
    reference = torch.nn.Module.to(copy.deepcopy(model), torch.float64)
    wrong = []
    for kernels in supported_kernels("auto", dtype, device):
        kind = _named(dtype)
        try:
            found = max_error(_backbone(model, kernels), reference, batches)
        except EntMTPError as refusal:
            table.rows.append([name, kind, kernels, 0, "refused at load", f"{BOUNDS[dtype]:g}", "FAIL"])
            wrong.append(str(refusal))
            continue
        fits = found <= BOUNDS[dtype]  # false for NaN too
        table.rows.append(
            [name, kind, kernels, batches, f"{found:.1e}", f"{BOUNDS[dtype]:g}", "ok" if fits else "FAIL"]
        )
        if not fits:
            wrong.append(f"{kernels} is off by {found:.1e} of the largest logit (bound: {BOUNDS[dtype]:g})")
    if wrong:
        raise EntMTPError("; ".join(wrong))


def _alone(table: Table, dtype: torch.dtype, device: torch.device, sizes: kernel_errors.Sizes) -> None:
    """Raises EntMTPError if a kernel exceeds its bound; its row is there all the same."""
    bound = kernel_errors.BOUNDS[dtype]
    errors = kernel_errors.kernel_errors(dtype, device, sizes)
    wrong = [name for name, error in errors.items() if not error <= bound]
    for name, error in errors.items():
        row: list[Cell] = [name, _named(dtype), f"{error:.1e}", f"{bound:g}", "FAIL" if name in wrong else "ok"]
        table.rows.append(row)
    if wrong:
        raise EntMTPError(f"Triton's kernels in {_named(dtype)}: {', '.join(wrong)} above the bound {bound:g}")


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _model(name: str, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    config = AutoConfig.for_model(name.partition(",")[0], **(_COMMON | MODELS[name]))
    torch.manual_seed(0)
    made: Any = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model: PreTrainedModel = made.to(device).eval().requires_grad_(False)
    return model


def _backbone(model: PreTrainedModel, kernels: Kernels) -> Backbone:
    return build_backbone(model, kernels)


def max_error(backbone: Backbone, reference: PreTrainedModel, batches: int) -> float:
    """The largest relative error of all batches; NaN if a logit is NaN."""
    draw = random.Random(0)
    errors = [_batch_error(backbone, reference, draw) for _ in range(batches)]
    return max(errors, key=lambda error: (error != error, error))


@torch.inference_mode()
def _batch_error(backbone: Backbone, reference: PreTrainedModel, draw: random.Random) -> float:
    trees = [random_tree(draw, nodes, min(nodes, DEPTH)) for nodes in NODES]
    prompts = [_tokens(draw, length, backbone.vocab_size) for length in PROMPTS]
    drafts = [_tokens(draw, 1 + tree.nodes, backbone.vocab_size) for tree in trees]
    rounded = backbone.device.type == "cuda"  # as a captured step's sizes are
    batch = TreeBatch.of(trees, backbone.device, rounded=rounded)
    cache = backbone.new_cache(slots=len(trees), capacity=max(PROMPTS) + 2 * batch.width)
    for slot, prompt in enumerate(prompts):
        backbone.prefill(prompt, slot, cache)
    padded = [draft + [0] * (batch.width - len(draft)) for draft in drafts]
    kv_range = cache.kv_range(range(len(trees)), batch.width, padded=batch.shape.padded, rounded=rounded)
    logits, _ = backbone.verify(torch.tensor(padded, device=backbone.device), batch, kv_range, cache)
    expected = [expected_logits(reference, *each) for each in zip(prompts, drafts, trees)]
    found = [logits[row, : len(draft)] for row, draft in enumerate(drafts)]
    return difference(torch.cat(found).double(), torch.cat(expected))


def expected_logits(
    reference: PreTrainedModel, prompt: Sequence[int], draft: Sequence[int], tree: Topology
) -> torch.Tensor:
    """Logits ``[nodes + 1, vocab_size]`` of a tree's nodes, the root first, from each of its paths alone.

    ``draft`` has the nodes' tokens. Paths are padded at their end, which no token before it sees.
    """
    number: dict[Path, int] = {(): 0}
    number |= {path: at for at, path in enumerate(tree.paths, 1)}
    inner = {path[:-1] for path in tree.paths}
    chains = [[number[path[:depth]] for depth in range(len(path) + 1)] for path in number if path not in inner]
    longest = max(map(len, chains))
    texts = [[*prompt, *(draft[node] for node in chain), *[0] * (longest - len(chain))] for chain in chains]
    ids = torch.tensor(texts, device=reference.device)
    logits = torch.nn.Module.__call__(reference, input_ids=ids, use_cache=False).logits[:, len(prompt) :]
    rows = {node: logits[row, depth] for row, chain in enumerate(chains) for depth, node in enumerate(chain)}
    return torch.stack([rows[node] for node in sorted(rows)])


def _tokens(draw: random.Random, count: int, vocab_size: int) -> list[int]:
    return [draw.randrange(vocab_size) for _ in range(count)]
