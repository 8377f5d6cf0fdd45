"""Rank traces of texts: the ranks of the true tokens among the draft heads' guesses at every position."""

from __future__ import annotations

import torch

from entmtp.heads.base import DraftHeads
from entmtp.heads.interface import TracedText
from entmtp.models.backbone import LOGITS_CHUNK
from entmtp.trees.trace import MISS, TRACED_RANKS, RankTrace


@torch.inference_mode()
def rank_trace(heads: DraftHeads, tokens: torch.Tensor, text: TracedText, entropy: torch.Tensor) -> RankTrace:
    """Trace the ``tokens [positions]`` of a ``text``; ``entropy [positions]`` is of their distributions."""
    positions, depth = len(tokens), heads.num_heads
    at = torch.arange(positions, device=tokens.device)[:, None] + torch.arange(depth + 1, device=tokens.device)
    windows = tokens[at.clamp(max=positions - 1)]
    index_of = torch.full((heads.config.vocab_size,), -1, device=tokens.device)
    index_of[heads.draft_vocab.long()] = torch.arange(len(heads.draft_vocab), device=tokens.device)
    ranks = torch.full((positions, depth), MISS, dtype=torch.int64, device=tokens.device)
    confidence = torch.zeros(positions, depth, TRACED_RANKS, device=tokens.device)
    estimated: list[torch.Tensor] = []
    for begin in range(0, positions, LOGITS_CHUNK):
        chunk = slice(begin, begin + LOGITS_CHUNK)
        forced = text.teacher_forced(at[chunk, 0], windows[chunk, :-1])
        logits = heads.draft_logits(forced)
        label = index_of[windows[chunk, 1:]]
        true = logits.gather(-1, label.clamp(min=0)[..., None])
        rank = (logits > true).sum(-1)
        ranks[chunk] = torch.where((label >= 0) & (at[chunk, 1:] < positions), rank, MISS)
        confidence[chunk] = logits.float().log_softmax(-1).topk(TRACED_RANKS).values
        if (odds := heads.estimated_odds(forced)) is not None:
            estimated.append(odds.cpu())
    return RankTrace(
        ranks.to("cpu", torch.int32),
        entropy.float().cpu(),
        confidence.cpu(),
        torch.cat(estimated) if estimated else None,
    )
