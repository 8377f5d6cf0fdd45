"""Top-k accuracy of draft heads."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from entmtp.heads.stateless import StatelessHeads
from entmtp.training.dataset import Dataset

TOP = (1, 5, 10)
_BATCH_SIZE = 256


@dataclass(frozen=True)
class HeadAccuracy:
    """Top-k accuracies: ``shares[i][k]`` is that of head i with its ``TOP[k]`` likeliest guesses."""

    shares: tuple[tuple[float, ...], ...]
    positions: int

    def metrics(self) -> dict[str, float]:
        """The shares by metric name, such as ``head1_top5``."""
        return {
            f"head{head}_top{top}": share
            for head, row in enumerate(self.shares, start=1)
            for top, share in zip(TOP, row, strict=True)
        }


@torch.inference_mode()
def measure_accuracy(
    heads: StatelessHeads, dataset: Dataset, positions: torch.Tensor, limit: int = 8192
) -> HeadAccuracy:
    """Measures top-k accuracy with teacher forcing, at no more than ``limit`` evenly spread ``positions``.

    A true token outside the draft vocabulary counts as a miss.
    """
    positions = positions[:: max(1, math.ceil(len(positions) / limit))]
    hits = torch.zeros(heads.num_heads, len(TOP))
    counts = torch.zeros(heads.num_heads)
    for chunk in positions.split(_BATCH_SIZE):
        batch = dataset.batch(chunk, heads.num_heads).to(heads.draft_vocab.device)
        states = heads.teacher_forced(batch.states[:, 0].to(heads.dtype), batch.tokens[:, :-1])
        top_tokens = heads.draft_logits(states).topk(max(TOP), dim=-1).indices
        is_hit = heads.draft_vocab.long()[top_tokens] == batch.tokens[:, 1:, None]
        is_hit &= batch.valid[:, :, None]
        counts += batch.valid.sum(0).cpu()
        for column, top in enumerate(TOP):
            hits[:, column] += is_hit[:, :, :top].any(-1).sum(0).cpu()
    shares = (hits / counts[:, None].clamp(min=1)).tolist()
    return HeadAccuracy(tuple(tuple(row) for row in shares), len(positions))
