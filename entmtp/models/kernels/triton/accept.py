"""Greedy acceptance of verified trees in one kernel, instead of about thirty operators."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from entmtp.models.kernels.triton.operators import operator
from entmtp.models.kernels.triton.row_statistics import row_statistics
from entmtp.trees.batch import TreeBatch


@triton.jit(do_not_specialize=["width", "depths"])  # one compilation for trees of about a size
def accept_kernel(
    tokens, best, parent, depth, bits, entropy, finite, nodes, counts, root, report,
    width, depths, width_block: tl.constexpr,
):  # fmt: skip
    """One program per request. A node's word has its own bit and its ancestors'; padding's word is 0."""
    request = tl.program_id(0).to(tl.int64)
    node = tl.arange(0, width_block)
    at = request * width + node
    inside = node < width
    token = tl.load(tokens + at, mask=inside, other=0)
    parents = tl.load(parent + at, mask=inside, other=0)
    level = tl.load(depth + at, mask=inside, other=0)
    word = tl.load(bits + at, mask=inside, other=0)
    choice = tl.load(best + request * width + parents, mask=inside, other=0)
    right = (token == choice) | (level == 0)
    accepted = tl.sum(tl.where(right & inside, tl.full([width_block], 1, tl.int64) << node, 0), axis=0)
    reached = tl.where((word != 0) & ((word & ~accepted) == 0), level, -1)
    deepest = tl.max(reached, axis=0)
    last = tl.min(tl.where((reached == deepest) & inside, node, width_block), axis=0)  # 0 on idle rows
    is_real = tl.load(bits + request * width) != 0
    count = tl.where(is_real, tl.load(depth + request * width + last) + 1, 0)
    chosen = tl.load(best + request * width + last)

    # Column d holds the path's node at depth d; after its end, node d.
    path = tl.load(bits + request * width + last)
    on_path = ((path >> node) & 1) == 1
    columns = depths + 1
    tl.store(nodes + request * columns + node, node.to(tl.int64), mask=(node < columns) & (node >= count))
    tl.store(nodes + request * columns + level, node.to(tl.int64), mask=inside & on_path)
    fields = columns + 5
    tl.store(report + request * fields + 5 + level, token, mask=inside & on_path)
    tl.store(report + request * fields + 5 + node, token, mask=(node < columns) & (node >= count))
    tl.store(counts + request, count)
    tl.store(root + request, chosen)
    nats = tl.load(entropy + request * width + last).to(tl.float64)
    tl.store(report + request * fields, tl.load(finite + request).to(tl.int64))
    tl.store(report + request * fields + 1, count)
    tl.store(report + request * fields + 2, last.to(tl.int64))
    tl.store(report + request * fields + 3, chosen)
    tl.store(report + request * fields + 4, nats.to(tl.int64, bitcast=True))


@operator(
    "accept(Tensor tokens, Tensor best, Tensor parent, Tensor depth, Tensor bits, Tensor entropy, Tensor finite,"
    " Tensor(a!) nodes, Tensor(b!) counts, Tensor(c!) root, Tensor(d!) report) -> ()"
)
def _accept(
    tokens: torch.Tensor,
    best: torch.Tensor,
    parent: torch.Tensor,
    depth: torch.Tensor,
    bits: torch.Tensor,
    entropy: torch.Tensor,
    finite: torch.Tensor,
    nodes: torch.Tensor,
    counts: torch.Tensor,
    root: torch.Tensor,
    report: torch.Tensor,
) -> None:
    batch, width = tokens.shape
    accept_kernel[(batch,)](
        tokens, best, parent, depth, bits, entropy, finite, nodes, counts, root, report, width, nodes.shape[1] - 1,
        width_block=triton.next_power_of_2(width), num_warps=1,
    )  # fmt: skip


def accept_greedy(
    tokens: torch.Tensor, logits: torch.Tensor, states: torch.Tensor, bits: torch.Tensor, trees: TreeBatch
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Fields of an ``Accepted`` of :mod:`entmtp.decoding.acceptance`, whose report covers whether states are finite.

    Args:
        tokens: the trees' tokens ``[batch, width]``, root first, at most 64 of a tree.
        logits: of their nodes ``[batch, width, vocab_size]``.
        states: of their nodes ``[batch, width, hidden_size]``.
        bits: words of their ancestors ``[batch, width]``.
        trees: the trees.
    """
    batch = len(tokens)
    depth = trees.shape.depth
    found = row_statistics(logits.contiguous())
    finite = states.isfinite().flatten(1).all(-1)
    nodes, report = tokens.new_empty(batch, depth + 1), tokens.new_empty(batch, depth + 6)
    counts, root = tokens.new_empty(batch), tokens.new_empty(batch)
    fields = tokens.contiguous(), found.tokens[..., 0].contiguous(), trees.parent, trees.depth, bits, found.entropy
    _accept(*fields, finite, nodes, counts, root, report)
    return nodes, counts, root, report
