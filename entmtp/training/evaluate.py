"""Top-k accuracy of draft heads."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from entmtp.heads.stateless import StatelessHeads
from entmtp.training.dataset import Positions

TOP = (1, 5, 10)
_BATCH_SIZE = 256


@dataclass(frozen=True)
class HeadAccuracy:
    """Top-k accuracies: ``shares[i][k]`` is that of the ``TOP[k]`` likeliest guesses at depth i + 1."""

    shares: tuple[tuple[float, ...], ...]
    positions: int

    def metrics(self) -> dict[str, float]:
        """The shares by metric name, such as ``head1_top5``."""
        return {
            f"head{head}_top{top}": share
            for head, row in enumerate(self.shares, start=1)
            for top, share in zip(TOP, row, strict=True)
        }


class TopCounts:
    """Counts of true tokens among the likeliest guesses, by depth."""

    widest = max(TOP)

    def __init__(self, depths: int) -> None:
        self._hits = torch.zeros(depths, len(TOP))
        self._counts = torch.zeros(depths)

    def add(self, depth: int, is_hit: torch.Tensor) -> None:
        """Adds guesses ``[n, widest]``, likeliest first: True where a guess is the true token."""
        self._counts[depth] += len(is_hit)
        for column, top in enumerate(TOP):
            self._hits[depth, column] += is_hit[:, :top].any(-1).sum().cpu()

    def accuracy(self) -> HeadAccuracy:
        """Shares of the true tokens that were guessed."""
        shares = (self._hits / self._counts[:, None].clamp(min=1)).tolist()
        return HeadAccuracy(tuple(tuple(row) for row in shares), int(self._counts[0]))


@torch.inference_mode()
def measure_accuracy(heads: StatelessHeads, texts: Positions, limit: int = 8192) -> HeadAccuracy:
    """Measures top-k accuracy with teacher forcing, at no more than ``limit`` evenly spread positions of the ``texts``.

    A true token outside the draft vocabulary counts as a miss.
    """
    positions = texts.usable
    positions = positions[:: max(1, math.ceil(len(positions) / limit))]
    counts = TopCounts(heads.num_heads)
    for chunk in positions.split(_BATCH_SIZE):
        batch = texts.batch(chunk, heads.num_heads).to(heads.draft_vocab.device)
        states = heads.teacher_forced(batch.states[:, 0].to(heads.dtype), batch.tokens[:, :-1])
        top_tokens = heads.draft_logits(states).topk(counts.widest, dim=-1).indices
        is_hit = heads.draft_vocab.long()[top_tokens] == batch.tokens[:, 1:, None]
        for depth in range(heads.num_heads):
            counts.add(depth, is_hit[batch.valid[:, depth], depth])
    return counts.accuracy()
