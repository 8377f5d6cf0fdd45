"""Rank traces: at every position of a greedy text, the rank that each head gave to the token that really came.

With greedy acceptance the output does not depend on the tree, so one trace answers offline what any tree or policy
would have accepted (see :mod:`entmtp.calibration.trace_replay`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from entmtp.errors import EntMTPError
from entmtp.files import write_whole

if TYPE_CHECKING:
    from entmtp.heads.base import DraftHeads
    from entmtp.heads.memory import HeadsText

MISS = 2**31 - 1
"""Rank of a token that a head can't guess: outside the draft vocabulary, or behind the end of the text."""

RANKED = 4
"""Guesses of each head whose probabilities are traced, and which a tree that grows by them may take."""

_ROWS = 128
_ROWWISE = "ranks", "entropy", "confidence"


@dataclass(frozen=True)
class RankedText:
    """As much of a greedy text as a replay reads of it.

    Attributes:
        ranks: ``[positions, heads]`` int32; entry ``[t, d]`` is the rank of token ``t + d + 1`` under head d when a
            step starts with token t as its root, given the true tokens between.
        entropy: ``[positions]`` float32, nats, of the distribution that token t was chosen from.
    """

    ranks: torch.Tensor
    entropy: torch.Tensor

    def __len__(self) -> int:
        return len(self.ranks)


@dataclass(frozen=True)
class RankTrace(RankedText):
    """One greedy text, with what its heads thought of their guesses.

    Attributes:
        confidence: ``[positions, heads, RANKED]`` float32, the log-probabilities of each head's likeliest guesses given
            the true tokens between. A step sees the first head's; a deeper head's it sees on the true path.
    """

    confidence: torch.Tensor


@torch.inference_mode()
def rank_trace(
    heads: DraftHeads, tokens: torch.Tensor, states: torch.Tensor, entropy: torch.Tensor, text: HeadsText | None = None
) -> RankTrace:
    """Traces one text: ``tokens [positions]``, each chosen from ``states [positions, hidden_size]``.

    Heads with a memory have read it, with what came before, as ``text``.
    """
    positions, depth = len(tokens), heads.num_heads
    at = torch.arange(positions, device=tokens.device)[:, None] + torch.arange(depth + 1, device=tokens.device)
    windows = tokens[at.clamp(max=positions - 1)]
    index_of = torch.full((heads.config.vocab_size,), -1, device=tokens.device)
    index_of[heads.draft_vocab.long()] = torch.arange(len(heads.draft_vocab), device=tokens.device)
    ranks = torch.full((positions, depth), MISS, dtype=torch.int64, device=tokens.device)
    confidence = torch.zeros(positions, depth, RANKED, device=tokens.device)
    for begin in range(0, positions, _ROWS):
        rows = slice(begin, begin + _ROWS)
        if text is None:
            forced = heads.teacher_forced(states[rows], windows[rows, :-1])
        else:
            forced = text.teacher_forced(at[rows, 0], windows[rows, :-1])
        logits = heads.draft_logits(forced)
        label = index_of[windows[rows, 1:]]
        true = logits.gather(-1, label.clamp(min=0)[..., None])
        rank = (logits > true).sum(-1)
        ranks[rows] = torch.where((label >= 0) & (at[rows, 1:] < positions), rank, MISS)
        confidence[rows] = logits.float().log_softmax(-1).topk(RANKED).values
    return RankTrace(ranks.to("cpu", torch.int32), entropy.float().cpu(), confidence.cpu())


def save_traces(path: Path, traces: Sequence[RankTrace], provenance: dict[str, str]) -> None:
    """Writes traces with their provenance (model and heads fingerprints, task, prompts' hash)."""
    tensors = {
        "ranks": torch.cat([trace.ranks for trace in traces]),
        "entropy": torch.cat([trace.entropy for trace in traces]),
        "confidence": torch.cat([trace.confidence for trace in traces]),
        "lengths": torch.tensor([len(trace) for trace in traces]),
    }
    marks = {"provenance": json.dumps(provenance)}
    write_whole(path, lambda unfinished: save_file(tensors, unfinished, metadata=marks))


def load_traces(path: Path) -> tuple[list[RankTrace], dict[str, str]]:
    """Reads what :func:`save_traces` wrote.

    Raises:
        EntMTPError: if the file is absent, is not a trace, or holds none.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in (*_ROWWISE, "lengths")}
            provenance = json.loads(file.metadata()["provenance"])
        lengths = tensors["lengths"].tolist()
        parts = list(zip(*(tensors[name].split(lengths) for name in _ROWWISE), strict=True))
    except Exception as error:  # safetensors raises its own type, and a foreign file lacks any of the keys
        raise EntMTPError(f"trace: {path} is not a rank trace ({error}); make one with 'entmtp calibrate'") from error
    if not sum(lengths):
        raise EntMTPError(f"trace: {path} is empty; make one from at least one prompt")
    return [RankTrace(*part) for part in parts], provenance
