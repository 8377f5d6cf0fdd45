"""Greedy acceptance of verified trees in one call, instead of about forty operators."""

from __future__ import annotations

from ctypes import byref

import torch

from entmtp.models.kernels.compiled import Accepted, Verified, library, profiled
from entmtp.trees.batch import TreeBatch


def accept_greedy(
    tokens: torch.Tensor, logits: torch.Tensor, states: torch.Tensor, trees: TreeBatch
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Fields of an ``Accepted`` of :mod:`entmtp.decoding.acceptance`, whose report covers all states.

    Args:
        tokens: the trees' tokens ``[batch, width]``, root first.
        logits: of their nodes ``[batch, width, vocab_size]``, in float32 on a CPU.
        states: of their nodes ``[batch, width, hidden_size]``, in float32 on a CPU.
        trees: the trees.
    """
    batch, width = tokens.shape
    depth = trees.shape.depth
    nodes, report = (torch.empty(batch, columns, dtype=torch.int64) for columns in (depth + 1, depth + 6))
    counts, root = (torch.empty(batch, dtype=torch.int64) for _ in range(2))
    inputs = {"tokens": tokens, "parent": trees.parent, "real": trees.real, "logits": logits, "states": states}
    inputs = {name: tensor.contiguous() for name, tensor in inputs.items()}
    verified = Verified(
        **{name: tensor.data_ptr() for name, tensor in inputs.items()},
        batch=batch,
        width=width,
        depth=depth,
        vocab=logits.shape[-1],
        hidden=states.shape[-1],
        threads=torch.get_num_threads(),
    )
    accepted = Accepted(nodes.data_ptr(), counts.data_ptr(), root.data_ptr(), report.data_ptr())
    with profiled("entmtp::accept"):
        library().entmtp_accept(byref(verified), byref(accepted))
    return nodes, counts, root, report


def check_states(report: torch.Tensor, states: torch.Tensor) -> None:
    """Add to the ``report [batch, columns]`` of accepted paths whether ``states [batch, ...]`` are finite."""
    states = states.contiguous()
    batch, columns = report.shape
    library().entmtp_check_states(report.data_ptr(), columns, states.data_ptr(), batch, states.numel() // batch)
