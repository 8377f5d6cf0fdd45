"""Which path of a verified tree is kept."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from entmtp.scheduling.signals import entropy
from entmtp.trees.batch import TreeBatch


@dataclass(frozen=True)
class Accepted:
    """The kept path of one request.

    Attributes:
        nodes: from the root (0) to the last accepted node.
        root: the model's own next token behind it: the next step's root.
        entropy: nats, of the distribution that the new root was chosen from.
    """

    nodes: list[int]
    root: int
    entropy: float


def greedy(tokens: torch.Tensor, logits: torch.Tensor, trees: TreeBatch) -> list[Accepted]:
    """Keeps the longest path on which every token is the model's argmax after its parent: exactly greedy decoding.

    ``tokens [batch, width]`` and ``logits [batch, width, vocab_size]`` belong to the trees' nodes, root first. Among
    paths of equal length the one in canonical order first is taken (siblings never hold the same token). Costs one
    host-device synchronisation.
    """
    best = logits.argmax(-1)
    right = (tokens == best.gather(1, trees.parent)) & trees.real
    right[:, 0] = True
    kept = trees.real & (right[:, None, :] | ~trees.ancestors).all(-1)
    last = trees.depth.masked_fill(~kept, -1).argmax(-1)
    rows = torch.arange(len(last), device=last.device)
    on_path = trees.ancestors[rows, last]
    answers = torch.cat([on_path, best[rows, last, None]], dim=1)
    measured = entropy(logits[rows, last])
    results = []
    for row, uncertainty in zip(answers.tolist(), measured.tolist(), strict=True):
        nodes = [node for node, kept_here in enumerate(row[:-1]) if kept_here]
        results.append(Accepted(nodes, row[-1], uncertainty))
    return results
