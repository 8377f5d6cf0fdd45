"""Texts with calm and wild stretches, which entropy tells apart or does not."""

from __future__ import annotations

import numpy as np
import torch

from entmtp.trees.trace import MISS, TRACED_RANKS, RankTrace

CALM, WILD = 0.3, 2.0
"""Nats, about."""

_STRETCH = 25
_CHANCES = {True: (0.9, 0.05, 0.02), False: (0.25, 0.2, 0.15)}  # by calm: of ranks 0, 1, 2


def alternating_text(seed: int, *, telling: bool, positions: int = 150) -> RankTrace:
    """A text in which long chains are right in calm stretches, and second guesses now and then in wild ones.

    Entropy is low in calm stretches where it is ``telling``; else it has stretches of its own.
    """
    rng = np.random.default_rng(seed)
    calm = _stretches(rng, positions)
    low = calm if telling else _stretches(rng, positions)
    chances = np.array([_CHANCES[bool(each)] for each in calm])
    drawn = (rng.random((positions, 4, 1)) > chances.cumsum(1)[:, None]).sum(-1)
    entropy = np.where(low, CALM, WILD) * rng.uniform(0.5, 1.5, positions)
    ranks = torch.tensor(np.where(drawn == chances.shape[1], MISS, drawn), dtype=torch.int32)
    return RankTrace(ranks, torch.tensor(entropy).float(), torch.full((positions, 4, TRACED_RANKS), -0.5))


def _stretches(rng: np.random.Generator, positions: int) -> np.ndarray:
    """Whether each position is calm ``[positions]``."""
    changes = rng.random(positions) < 1 / _STRETCH
    return (changes.cumsum() + rng.integers(2)) % 2 == 0
