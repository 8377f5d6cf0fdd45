"""Fit the calibration of the heads' probabilities on rank traces (:mod:`entmtp.trees.probability_calibration`).

There are two candidates: Platt scaling per depth, and Platt scaling whose offset depends on the sharpness of each
distribution. Heads that estimate their own acceptance add a third, whose offset depends on that estimate too.
Cross-validation decides between them, as more coefficients always fit better the texts that they were fitted on. For
that reason the slope depends on nothing: with the bundled heads, that predicted other texts worse.
Whole texts are held out, since the guesses of one text resemble each other.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from entmtp.calibration.fit import logistic
from entmtp.trees.probability_calibration import (
    Candidate,
    LogLosses,
    ProbabilityCalibration,
    SharpnessScaling,
    bounded_odds,
    log_odds,
)
from entmtp.trees.sharpness import Sharpness
from entmtp.trees.trace import RankTrace, estimated_odds_of

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
        estimated: ``[rows, 1]`` bounded log-odds of the head's own estimate; None if it has none.
    """

    log_probs: np.ndarray
    odds: np.ndarray
    sharpness: np.ndarray
    right: np.ndarray
    text: np.ndarray
    estimated: np.ndarray | None

    def where(self, rows: np.ndarray) -> GuessTable:
        """Table of the selected ``rows [rows]``, a mask."""
        return GuessTable(
            self.log_probs[rows],
            self.odds[rows],
            self.sharpness[rows],
            self.right[rows],
            self.text[rows],
            None if self.estimated is None else self.estimated[rows],
        )


def guess_tables(traces: Sequence[RankTrace]) -> list[GuessTable]:
    """Collect the guesses of each head. If its predecessors were never right, all positions count.

    If a trace lacks the heads' own estimates, no table has them.
    """
    ranks = np.concatenate([trace.ranks.numpy() for trace in traces])
    log_probs = np.concatenate([trace.confidence.numpy() for trace in traces])
    text = np.repeat(np.arange(len(traces)), [len(trace) for trace in traces])
    estimated = estimated_odds_of(traces)
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
                estimated=None if estimated is None else _bounded(estimated.numpy()[used, depth]),
            )
        )
    return tables


def _bounded(estimated: np.ndarray) -> np.ndarray:
    """Bounded log-odds ``[rows, 1]`` of estimates ``[rows]``."""
    return np.array([bounded_odds(value) for value in estimated.tolist()]).reshape(-1, 1)


def fit_chances(traces: Sequence[RankTrace]) -> ProbabilityCalibration:
    """Fit the calibration; of the candidates it is the one with the smallest log-loss on held-out texts."""
    tables = guess_tables(traces)
    fitted, losses = fit_scaling(tables), held_out_log_loss(tables)
    chosen = fitted["plain" if losses is None else losses.best]
    return chosen.model_copy(update={"held_out": losses})


def fit_scaling(tables: Sequence[GuessTable]) -> dict[Candidate, ProbabilityCalibration]:
    """Fit all candidates on all rows, the simplest first."""
    heads = [_fit_head(table) for table in tables]
    plain = ProbabilityCalibration(
        slope=[fits["plain"].slope for fits in heads],
        offset=[fits["plain"].offset for fits in heads],
        follow=[_mean_chances(table).round(5).tolist() for table in tables],
    )
    found: dict[Candidate, ProbabilityCalibration] = {"plain": plain}
    for name in heads[0]:
        if name != "plain":
            scaling = _scaling([fits[name] for fits in heads])
            found[name] = plain.model_copy(update={"sharpness": scaling})
    return found


def _scaling(fits: Sequence[_Fit]) -> SharpnessScaling:
    """Scaling of each depth's slope, offset and weights."""
    entropy, margin, *estimated_odds = zip(*(fit.weights for fit in fits), strict=True)
    return SharpnessScaling(
        slope=[fit.slope for fit in fits],
        offset=[fit.offset for fit in fits],
        entropy=list(entropy),
        margin=list(margin),
        estimated_odds=list(estimated_odds[0]) if estimated_odds else None,
    )


def held_out_log_loss(tables: Sequence[GuessTable]) -> LogLosses | None:
    """Compare the candidates by cross-validation over whole texts; None if there is only one text."""
    texts = np.unique(np.concatenate([table.text for table in tables]))
    if len(texts) < 2:
        return None
    fold_of = np.zeros(texts[-1] + 1, dtype=np.int64)
    fold_of[texts] = np.random.default_rng(0).permutation(len(texts)) % min(FOLDS, len(texts))
    losses: dict[str, float] = defaultdict(float)
    for fold in range(fold_of.max() + 1):
        fitted = fit_scaling([table.where(fold_of[table.text] != fold) for table in tables])
        held_out = [table.where(fold_of[table.text] == fold) for table in tables]
        for name, chances in fitted.items():
            losses[name] += total_log_loss(chances, held_out)
    guesses = sum(table.odds.size for table in tables)
    return LogLosses(texts=len(texts), **{name: loss / guesses for name, loss in losses.items()})


def total_log_loss(chances: ProbabilityCalibration, tables: Sequence[GuessTable]) -> float:
    """Log-loss of all guesses of the tables together, in nats."""
    total = 0.0
    for depth, table in enumerate(tables):
        estimated = [None] * len(table.text) if table.estimated is None else table.estimated[:, 0].tolist()
        rows = [
            chances.probabilities(depth, values, estimated_odds=odds)
            for values, odds in zip(table.log_probs.tolist(), estimated, strict=True)
        ]
        chance = np.clip(np.array(rows).reshape(table.odds.shape), _LEAST_CHANCE, 1 - _LEAST_CHANCE)
        right = table.right[:, : table.odds.shape[1]]
        total -= float(np.log(np.where(right, chance, 1 - chance)).sum())
    return total


class _Fit(NamedTuple):
    """Coefficients of a candidate for one head; ``weights`` are those of the offset's features."""

    slope: float
    offset: float
    weights: list[float]


def _fit_head(table: GuessTable) -> dict[Candidate, _Fit]:
    """Fit all candidates for one head, the simplest first."""
    fits: dict[Candidate, _Fit] = {"plain": _fit(table), "sharpness": _fit(table, table.sharpness)}
    if table.estimated is not None:
        fits["estimated_odds"] = _fit(table, table.sharpness, table.estimated)
    return fits


def _fit(table: GuessTable, *features: np.ndarray) -> _Fit:
    """Fit a candidate by the log-odds of guesses and the ``features [rows, n]`` of their distributions.

    Without a row it is the head's own probabilities.
    """
    if not len(table.text):
        return _Fit(1.0, 0.0, [0.0] * sum(feature.shape[1] for feature in features))
    count = table.odds.shape[1]
    columns = [table.odds.reshape(-1, 1), *(feature.repeat(count, axis=0) for feature in features)]
    (slope, *weights), offset = logistic(np.concatenate(columns, axis=1), table.right[:, :count].reshape(-1))
    return _Fit(max(0.0, float(slope)), offset, [float(weight) for weight in weights])


def _mean_chances(table: GuessTable) -> np.ndarray:
    """Mean probability ``[FOLLOWED]`` that the guess of each rank is right; 0 without a row."""
    found: np.ndarray = table.right.sum(0) / max(1, len(table.right))
    return found
