"""Rank traces: at every position of a greedy text, the rank that each head gave to the token that really came.

With greedy acceptance the output does not depend on the tree, so one trace answers offline what any tree or policy
would have accepted (see :mod:`entmtp.calibration.trace_replay`).
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
"""Rank of a token that a head can't guess: outside the draft vocabulary, or behind the end of the text."""

TRACED_RANKS = 4
"""Guesses of each head whose probabilities are traced, and which a tree that grows by them may take."""

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
        confidence: ``[positions, heads, TRACED_RANKS]`` float32, log-probabilities of each head's top tokens, given the
            true tokens between. A step sees the first head's. It sees those of deeper heads on the true path.
    """

    confidence: torch.Tensor


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
