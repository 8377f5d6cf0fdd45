"""Fit the calibration of the heads' probabilities on rank traces (:mod:`entmtp.trees.probability_calibration`).

There are two candidates: Platt scaling per depth, and Platt scaling whose offset depends on the sharpness of each
distribution. Cross-validation decides between them, as more coefficients always fit better the texts that they were
fitted on. For that reason the slope depends on nothing: with the bundled heads, that predicted other texts worse. Whole
texts are held out, since the guesses of one text resemble each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from entmtp.calibration.fit import logistic
from entmtp.trees.probability_calibration import (
    LogLosses,
    ProbabilityCalibration,
    SharpnessScaling,
    log_odds,
)
from entmtp.trees.sharpness import Sharpness
from entmtp.trees.trace import RankTrace

FOLDS = 5
"""Parts of the texts, each of which is held out once."""

FOLLOWED = 16
"""Ranks whose mean probability is stored: the maximum children of a node in an expanded tree."""

_LEAST_CHANCE = 1e-6
"""Bound of the log-loss, so that one guess can't decide."""


@dataclass(frozen=True)
class GuessTable:
    """Table of one head's guesses, a row for each position where the heads before it were right.

    Attributes:
        log_probs: ``[rows, ranks]`` of the likeliest guesses.
        odds: ``[rows, ranks]`` their log-odds.
        sharpness: ``[rows, 2]`` entropy and margin of the head's distribution.
        right: ``[rows, FOLLOWED]`` whether the guess of each rank is right.
        text: ``[rows]`` index of the text.
    """

    log_probs: np.ndarray
    odds: np.ndarray
    sharpness: np.ndarray
    right: np.ndarray
    text: np.ndarray

    def where(self, rows: np.ndarray) -> GuessTable:
        """Table of the selected ``rows [rows]``, a mask."""
        return GuessTable(
            self.log_probs[rows], self.odds[rows], self.sharpness[rows], self.right[rows], self.text[rows]
        )


def guess_tables(traces: Sequence[RankTrace]) -> list[GuessTable]:
    """Collect the guesses of each head. If its predecessors were never right, all positions count."""
    ranks = np.concatenate([trace.ranks.numpy() for trace in traces])
    log_probs = np.concatenate([trace.confidence.numpy() for trace in traces])
    text = np.repeat(np.arange(len(traces)), [len(trace) for trace in traces])
    tables = []
    for depth in range(ranks.shape[1]):
        reached = (ranks[:, :depth] < FOLLOWED).all(1)
        used = reached if reached.any() else ~reached
        own = log_probs[used, depth]
        tables.append(
            GuessTable(
                log_probs=own,
                odds=np.vectorize(log_odds)(own),
                sharpness=np.array([Sharpness.of(values) for values in own.tolist()]),
                right=ranks[used, depth, None] == np.arange(FOLLOWED),
                text=text[used],
            )
        )
    return tables


def fit_chances(traces: Sequence[RankTrace]) -> ProbabilityCalibration:
    """Fit the calibration; it depends on sharpness if that lowers the log-loss on held-out texts."""
    tables = guess_tables(traces)
    fitted, losses = fit_scaling(tables), held_out_log_loss(tables)
    if losses is None or losses.sharpness >= losses.plain:
        fitted = fitted.plain
    return fitted.model_copy(update={"held_out": losses})


def fit_scaling(tables: Sequence[GuessTable]) -> ProbabilityCalibration:
    """Fit both candidates on all rows; the result depends on sharpness, and its ``plain`` doesn't."""
    fits = [_fit_head(table) for table in tables]
    return ProbabilityCalibration(
        slope=[fit.slope for fit in fits],
        offset=[fit.offset for fit in fits],
        follow=[_mean_chances(table).round(5).tolist() for table in tables],
        sharpness=SharpnessScaling(
            slope=[fit.sharpness_slope for fit in fits],
            offset=[fit.sharpness_offset for fit in fits],
            entropy=[fit.entropy for fit in fits],
            margin=[fit.margin for fit in fits],
        ),
    )


def held_out_log_loss(tables: Sequence[GuessTable]) -> LogLosses | None:
    """Compare the candidates by cross-validation over whole texts; None if there is only one text."""
    texts = np.unique(np.concatenate([table.text for table in tables]))
    if len(texts) < 2:
        return None
    fold_of = np.zeros(texts[-1] + 1, dtype=np.int64)
    fold_of[texts] = np.random.default_rng(0).permutation(len(texts)) % min(FOLDS, len(texts))
    plain = sharpness = 0.0
    for fold in range(fold_of.max() + 1):
        fitted = fit_scaling([table.where(fold_of[table.text] != fold) for table in tables])
        held_out = [table.where(fold_of[table.text] == fold) for table in tables]
        plain += total_log_loss(fitted.plain, held_out)
        sharpness += total_log_loss(fitted, held_out)
    guesses = sum(table.odds.size for table in tables)
    return LogLosses(texts=len(texts), plain=plain / guesses, sharpness=sharpness / guesses)


def total_log_loss(chances: ProbabilityCalibration, tables: Sequence[GuessTable]) -> float:
    """Log-loss of all guesses of the tables together, in nats."""
    total = 0.0
    for depth, table in enumerate(tables):
        rows = [chances.probabilities(depth, values) for values in table.log_probs.tolist()]
        chance = np.clip(np.array(rows).reshape(table.odds.shape), _LEAST_CHANCE, 1 - _LEAST_CHANCE)
        right = table.right[:, : table.odds.shape[1]]
        total -= float(np.log(np.where(right, chance, 1 - chance)).sum())
    return total


class _HeadFit(NamedTuple):
    slope: float
    offset: float
    sharpness_slope: float
    sharpness_offset: float
    entropy: float
    margin: float


def _fit_head(table: GuessTable) -> _HeadFit:
    """Fit both candidates for one head. Without a row they are the head's own probabilities."""
    if not len(table.text):
        return _HeadFit(1.0, 0.0, 1.0, 0.0, 0.0, 0.0)
    right = table.right[:, : table.odds.shape[1]].reshape(-1)
    odds = table.odds.reshape(-1, 1)
    (slope,), offset = logistic(odds, right)
    seen = table.sharpness.repeat(table.odds.shape[1], axis=0)
    (by_odds, entropy, margin), constant = logistic(np.concatenate([odds, seen], axis=1), right)
    return _HeadFit(max(0.0, float(slope)), offset, max(0.0, float(by_odds)), constant, float(entropy), float(margin))


def _mean_chances(table: GuessTable) -> np.ndarray:
    """Mean probability ``[FOLLOWED]`` that the guess of each rank is right; 0 without a row."""
    found: np.ndarray = table.right.sum(0) / max(1, len(table.right))
    return found
