"""How often each head's guesses contain the true token."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from entmtp.heads.stateless import StatelessHeads
from entmtp.training.dataset import Dataset

TOP = (1, 5, 10)
_ROWS = 256


@dataclass(frozen=True)
class HeadAccuracy:
    """``shares[i][k]``: share of held-out positions at which head i's best ``TOP[k]`` guesses hold the true token."""

    shares: tuple[tuple[float, ...], ...]
    positions: int

    def metrics(self) -> dict[str, float]:
        """Flat names such as ``head1_top5``."""
        return {
            f"head{head}_top{top}": share
            for head, row in enumerate(self.shares, start=1)
            for top, share in zip(TOP, row, strict=True)
        }


@torch.inference_mode()
def accuracy(heads: StatelessHeads, dataset: Dataset, positions: torch.Tensor, limit: int = 8192) -> HeadAccuracy:
    """Top-k accuracy over (at most ``limit``, evenly spread) ``positions``, true tokens before each guess.

    A true token outside the draft vocabulary counts as a miss.
    """
    positions = positions[:: max(1, math.ceil(len(positions) / limit))]
    hits = torch.zeros(heads.num_heads, len(TOP))
    seen = torch.zeros(heads.num_heads)
    for chunk in positions.split(_ROWS):
        batch = dataset.batch(chunk, heads.num_heads).to(heads.output_weight.device)
        states = heads.teacher_forced(batch.states[:, 0].to(heads.output_weight.dtype), batch.tokens[:, :-1])
        best = heads.draft_logits(states).topk(max(TOP), dim=-1).indices
        right = heads.draft_vocab.long()[best] == batch.tokens[:, 1:, None]
        right &= batch.valid[:, :, None]
        seen += batch.valid.sum(0).cpu()
        for at, top in enumerate(TOP):
            hits[:, at] += right[:, :, :top].any(-1).sum(0).cpu()
    shares = (hits / seen[:, None].clamp(min=1)).tolist()
    return HeadAccuracy(tuple(tuple(row) for row in shares), len(positions))
