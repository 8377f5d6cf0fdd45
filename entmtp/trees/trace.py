"""Rank traces: at every position of a greedy text, the rank that each head gave to the true next token.

With greedy acceptance the output does not depend on the tree. So one trace shows offline what any tree or policy would
have accepted (see :mod:`entmtp.trees.trace_replay`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from entmtp.errors import EntMTPError
from entmtp.files import write_whole

MISS = 2**31 - 1
"""Rank of a token that a head can't draft: outside the draft vocabulary, or after the end of the text."""

TRACED_RANKS = 4
"""Top-k tokens of each head whose probabilities are traced; a dynamically expanded tree may use these ranks.

The sharpness of a distribution is read from them too (:mod:`entmtp.trees.sharpness`).
"""

_ROWWISE = "ranks", "entropy", "confidence"
_ESTIMATED = "estimated_odds"  # absent if the heads estimate nothing, and in older files


@dataclass(frozen=True)
class RankedText:
    """The part of a rank trace that a replay of static trees and ladders reads.

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
    """The full rank trace of one greedy text, including the heads' probabilities.

    Attributes:
        confidence: ``[positions, heads, TRACED_RANKS]`` float32, log-probabilities of each head's top tokens, given the
            true tokens between. A step sees the first head's. It sees those of deeper heads on the true path.
        estimated_odds: ``[positions, heads]`` float32, log-odds that a guess of each head is accepted, as the heads
            estimate it, given the true tokens between; None if they estimate nothing, and in older files.
    """

    confidence: torch.Tensor
    estimated_odds: torch.Tensor | None = None


def estimated_odds_of(traces: Sequence[RankTrace]) -> torch.Tensor | None:
    """The heads' own estimates ``[positions, heads]`` in all ``traces``; None if a trace has none."""
    known = [trace.estimated_odds for trace in traces if trace.estimated_odds is not None]
    return torch.cat(known) if len(known) == len(traces) else None


def save_traces(path: Path, traces: Sequence[RankTrace], provenance: dict[str, str]) -> None:
    """Write traces with their provenance (model and heads fingerprints, task, hash of the prompts)."""
    tensors = {
        "ranks": torch.cat([trace.ranks for trace in traces]),
        "entropy": torch.cat([trace.entropy for trace in traces]),
        "confidence": torch.cat([trace.confidence for trace in traces]),
        "lengths": torch.tensor([len(trace) for trace in traces]),
    }
    if (odds := estimated_odds_of(traces)) is not None:
        tensors[_ESTIMATED] = odds
    marks = {"provenance": json.dumps(provenance)}
    write_whole(path, lambda unfinished: save_file(tensors, unfinished, metadata=marks))


def load_traces(path: Path) -> tuple[list[RankTrace], dict[str, str]]:
    """Read traces and their provenance from a file of :func:`save_traces`.

    Raises:
        EntMTPError: if the file is absent, is not a rank trace, or is empty.
    """
    try:
        with safe_open(path, framework="pt") as file:
            rowwise = [*_ROWWISE, *({_ESTIMATED} & set(file.keys()))]
            tensors = {name: file.get_tensor(name) for name in (*rowwise, "lengths")}
            provenance = json.loads(file.metadata()["provenance"])
        lengths = tensors["lengths"].tolist()
        parts = list(zip(*(tensors[name].split(lengths) for name in rowwise), strict=True))
    except Exception as error:  # safetensors raises its own type, and a foreign file lacks any of the keys
        raise EntMTPError(f"trace: {path} is not a rank trace ({error}); make one with 'entmtp calibrate'") from error
    if not sum(lengths):
        raise EntMTPError(f"trace: {path} is empty; make one from at least one prompt")
    return [RankTrace(*part) for part in parts], provenance
