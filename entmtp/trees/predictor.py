"""Predictor of a step's gain: its signals give the acceptance probability of every path, and so of any topology.

A linear *score* of the signals measures how easy the next tokens are. The probability that the true ranks start with a
path is known at a few *centres* of that score. Between the centres it is interpolated. The expected accepted length of
a topology is a sum over its nodes, as for the optimal trees, but for one step. :mod:`entmtp.calibration.fit` fits the
predictor on rank traces, and the tree bank stores it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from functools import cached_property
from operator import mul
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

from entmtp.trees.topology import Path, Topology

Feature = Literal["entropy", "entropy_ema", "accepted_ema", "confidence"]
FEATURES: tuple[Feature, ...] = ("entropy", "entropy_ema", "accepted_ema", "confidence")
BEFORE_DRAFTING: tuple[Feature, ...] = ("entropy", "entropy_ema", "accepted_ema")
"""Features that are known before the heads run, when a tree is chosen."""

Probability = Annotated[FiniteFloat, Field(ge=0, le=1)]


class Predictor(BaseModel):
    """Acceptance probability of each path, given the signals of a step.

    Attributes:
        features: signals that the score is made of.
        weights, bias: coefficients of the score.
        centres: scores at which probabilities are known, increasing.
        shares: share of the calibration's steps that were nearest to each centre.
        paths: paths with a probability; that of any other path is 0.
        probabilities: ``[centres][paths]`` probability that the true ranks start with the path.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    features: list[Feature] = Field(min_length=1)
    weights: list[FiniteFloat]
    bias: FiniteFloat
    centres: list[FiniteFloat] = Field(min_length=1)
    shares: list[Probability]
    paths: list[Path]
    probabilities: list[list[Probability]]

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if len(self.weights) != len(self.features):
            raise ValueError(f"{len(self.features)} features need as many weights, not {len(self.weights)}")
        if any(low >= high for low, high in zip(self.centres, self.centres[1:], strict=False)):
            raise ValueError(f"centres {self.centres} must increase")
        widths = {len(row) for row in self.probabilities}
        if not len(self.shares) == len(self.probabilities) == len(self.centres) or widths != {len(self.paths)}:
            raise ValueError("every centre needs a share, and a probability for every path")
        return self

    @cached_property
    def index(self) -> dict[Path, int]:
        """Column of each path."""
        return {path: column for column, path in enumerate(self.paths)}

    @cached_property
    def table(self) -> np.ndarray:
        """Probabilities ``[centres, paths]``."""
        return np.array(self.probabilities, dtype=np.float64).reshape(len(self.centres), len(self.paths))

    def score(self, values: np.ndarray) -> np.ndarray:
        """Score ``[...]`` of the values of the features ``[..., features]``: the higher, the easier the next tokens.

        It has no unit: its meaning comes from its order and the centres.
        """
        score: np.ndarray = values @ np.array(self.weights) + self.bias
        return score

    def score_of(self, values: Sequence[float]) -> float:
        """:meth:`score` of one request without NumPy, which is faster in every step."""
        return self.bias + sum(map(mul, self.weights, values))

    def centre_weights(self, score: float) -> np.ndarray:
        """Interpolation weight of each centre at ``score`` ``[centres]``.

        Weights are linear between two centres. Beyond the outermost centre its weight is 1.
        """
        return self.centre_weights_of([score])[0]

    def centre_weights_of(self, scores: Sequence[float]) -> np.ndarray:
        """:meth:`centre_weights` of several ``scores`` ``[scores, centres]``."""
        centres = self.centres
        weights = np.zeros((len(scores), len(centres)))
        for row, score in enumerate(scores):
            above = bisect_left(centres, score)
            low, high = max(0, above - 1), min(above, len(centres) - 1)
            part = 1.0 if low == high else (score - centres[low]) / (centres[high] - centres[low])
            weights[row, low] = 1 - part
            weights[row, high] += part
        return weights

    def gains(self, topologies: Sequence[Topology]) -> np.ndarray:
        """Expected tokens per step, including the root, of topologies at each centre ``[centres, topologies]``."""
        members = np.zeros((len(self.paths), len(topologies)))
        for column, topology in enumerate(topologies):
            members[[self.index[path] for path in topology.paths if path in self.index], column] = 1
        return 1 + self.table @ members

    def lengths(self, topology: Topology, score: float) -> np.ndarray:
        """Distribution of the accepted length ``[depth + 1]`` of a step with ``topology``."""
        probabilities = self.centre_weights(score) @ self.table
        reach = np.zeros(topology.max_depth + 2)
        reach[0] = 1
        for path in topology.paths:
            reach[len(path)] += probabilities[self.index[path]] if path in self.index else 0.0
        return -np.diff(reach)
