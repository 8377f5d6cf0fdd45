"""Fit predictors of the accepted length on rank traces, and measure their quality on other traces.

A table row is the start of a step that a static tree of one of a few sizes would take. Signals depend on where steps
start, and on what the steps before them gained. A logistic regression on "the first guess of the heads is right" gives
the score. Quantile bins of the score give the centres, and the frequencies of paths in each bin the probabilities.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from entmtp.calibration.optimal import most_probable_paths
from entmtp.calibration.policy_replay import replay_steps
from entmtp.policies.static import StaticPolicy
from entmtp.trees.predictor import FEATURES, Feature, Predictor
from entmtp.trees.topology import Path, Topology
from entmtp.trees.trace import RankTrace
from entmtp.trees.trace_replay import accepted_length

PATHS = 255
"""Maximum number of paths in a predictor."""

_MOST_BINS = 8
_ROWS_PER_BIN = 150
_PRIOR_ROWS = 10.0
"""Weight, in rows, of the overall frequencies as a prior of each bin's: rare paths have few rows in a bin."""

_RIDGE = 1e-3
_NEWTON_STEPS = 25


@dataclass(frozen=True)
class StepTable:
    """Table of the steps of replayed texts.

    Attributes:
        features: ``[rows, len(FEATURES)]``.
        ranks: ``[rows, heads]`` true ranks where the step starts.
        text: ``[rows]`` index of the text.
    """

    features: np.ndarray
    ranks: np.ndarray
    text: np.ndarray

    def __len__(self) -> int:
        return len(self.text)


def step_table(traces: Sequence[RankTrace], trees: Sequence[Topology], window: int) -> StepTable:
    """Replay each of ``trees`` through each text; return the steps with their signals."""
    features, ranks, text = [], [], []
    for number, trace in enumerate(traces):
        table, confidence = trace.ranks.numpy(), trace.confidence[:, 0, 0].tolist()
        for tree in trees:
            for step in replay_steps(trace, StaticPolicy(tree, window)):
                seen = replace(step.signals, confidence=confidence[step.position])
                features.append(seen.values(FEATURES))
                ranks.append(table[step.position])
                text.append(number)
    return StepTable(np.array(features), np.array(ranks), np.array(text))


def fit_predictor(rows: StepTable, features: Sequence[Feature], paths: int = PATHS) -> Predictor:
    """Fit a predictor whose input are ``features``."""
    columns = [FEATURES.index(feature) for feature in features]
    seen = rows.features[:, columns]
    weights, bias = logistic(seen, rows.ranks[:, 0] == 0)
    score = seen @ weights + bias
    bins = max(1, min(_MOST_BINS, len(rows) // _ROWS_PER_BIN))
    edges = np.unique(np.quantile(score, np.arange(1, bins) / bins))
    member = np.searchsorted(edges, score, side="right")
    present = np.unique(member)
    known = [path for path, _ in most_probable_paths(rows.ranks, paths)]
    overall = _frequencies(rows.ranks, known, np.zeros(len(known)), 0.0)
    return Predictor(
        features=list(features),
        weights=weights.tolist(),
        bias=float(bias),
        centres=[float(np.mean(score[member == each])) for each in present],
        shares=[float(np.mean(member == each)) for each in present],
        paths=known,
        probabilities=[
            _frequencies(rows.ranks[member == each], known, overall, _PRIOR_ROWS).round(6).tolist() for each in present
        ],
    )


def _frequencies(ranks: np.ndarray, paths: Sequence[Path], prior: np.ndarray, weight: float) -> np.ndarray:
    """Frequency with which the true ranks start with each path ``[paths]``, with ``weight`` rows of ``prior`` added."""
    found = np.array([np.all(ranks[:, : len(path)] == path, axis=1).sum() for path in paths], dtype=np.float64)
    return (found + weight * prior) / (len(ranks) + weight)


def logistic(features: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, float]:
    """Fit a logistic regression: weights ``[features]`` and bias, by Newton's method on standardised features."""
    mean, spread = features.mean(0), features.std(0)
    spread = np.where(spread > 0, spread, 1.0)
    design = np.column_stack([(features - mean) / spread, np.ones(len(features))])
    penalty = _RIDGE * len(features) * np.append(np.ones(features.shape[1]), 0.0)
    beta = np.zeros(design.shape[1])
    for _ in range(_NEWTON_STEPS):
        chance = 1 / (1 + np.exp(-np.clip(design @ beta, -30, 30)))
        gradient = design.T @ (chance - right) + penalty * beta
        curvature = (design * (chance * (1 - chance))[:, None]).T @ design + np.diag(penalty + 1e-9)
        beta = beta - np.linalg.solve(curvature, gradient)
    weights = beta[:-1] / spread
    return weights, float(beta[-1] - weights @ mean)


@dataclass(frozen=True)
class PredictorQuality:
    """Quality of a predictor of a topology's accepted length.

    Attributes:
        log_loss: nats per step of the accepted length's distribution.
        text_losses: the same of each text, in the order of the texts' numbers, ``[texts]``.
        calibration_error: expected calibration error (ECE) of the probability that anything is accepted.
        within_text: correlation of predicted and measured accepted lengths within texts (without the texts' means).
    """

    log_loss: float
    text_losses: np.ndarray
    calibration_error: float
    within_text: float


def quality(predictor: Predictor, rows: StepTable, topology: Topology, bins: int = 10) -> PredictorQuality:
    """Measure the quality on ``rows`` that the predictor was not fitted on."""
    columns = [FEATURES.index(feature) for feature in predictor.features]
    predicted = np.array([predictor.lengths(topology, score) for score in predictor.score(rows.features[:, columns])])
    seen = np.array([accepted_length(topology, row) for row in rows.ranks.tolist()])
    chance = np.clip(predicted[np.arange(len(seen)), seen], 1e-6, 1.0)
    losses = -np.log(chance)
    expected = predicted @ np.arange(predicted.shape[1])
    return PredictorQuality(
        log_loss=float(losses.mean()),
        text_losses=np.array([losses[rows.text == number].mean() for number in np.unique(rows.text)]),
        calibration_error=_calibration_error(1 - predicted[:, 0], seen > 0, bins),
        within_text=_within(expected, seen.astype(np.float64), rows.text),
    )


def _calibration_error(predicted: np.ndarray, seen: np.ndarray, bins: int) -> float:
    r"""Mean absolute difference of mean prediction and measured frequency over equally filled bins."""
    parts = [part for part in np.array_split(np.argsort(predicted, kind="stable"), bins) if len(part)]
    return float(sum(len(part) * abs(predicted[part].mean() - seen[part].mean()) for part in parts) / len(seen))


def _within(predicted: np.ndarray, seen: np.ndarray, text: np.ndarray) -> float:
    """Pearson's correlation after subtracting each text's means; 0 if nothing varies."""
    for number in np.unique(text):
        rows = text == number
        predicted, seen = predicted.copy(), seen.copy()
        predicted[rows] -= predicted[rows].mean()
        seen[rows] -= seen[rows].mean()
    norm = np.sqrt((predicted @ predicted) * (seen @ seen))
    return float(predicted @ seen / norm) if norm > 0 else 0.0
